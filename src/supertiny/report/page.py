"""One self-contained page: opens from disk, asks no network, follows the reader's light or dark theme."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from supertiny.report import charts, front, numbers
from supertiny.report.verdict import NOTES, sureness, title_of

_FOLDER = Path(__file__).parent
_LADDER = ("plain_prompt", "pipeline", "student", "artifact")
_CALL_KEYS = ("calls", "exact", "text", "raw", "confidence", "reason")


def page(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], page_rows: int = 2000) -> str:
    """The HTML of report.html. Of `rows`, those are embedded that some answerer got wrong, at most `page_rows`."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=numbers.percent,
        points=numbers.points,
        duration=numbers.duration,
        size=numbers.size,
        dollars=numbers.dollars,
        count=numbers.count,
        times=numbers.times,
        title_of=title_of,
        call_text=call_text,
    )
    entries = list(report["answerers"])
    wrong = [row for row in rows if not all(answer["exact"] for answer in row["answers"].values())]
    return environment.get_template("template.html.j2").render(
        report=report,
        entries=entries,
        by_name={entry["name"]: entry for entry in entries},
        notes=NOTES,
        interval=numbers.interval,
        sureness=sureness,
        tiles=_tiles(report),
        functions=_functions(entries),
        token_share=_token_shares(entries),
        steps=[_step(step) for step in report["compress_steps"]],
        gate=_gate(report["compress_steps"]),
        points=front.lines(report.get("compress_search")),
        found=front.sentence(report["compress_search"]) if report.get("compress_search") else "",
        drawings=_drawings(report),
        wrong_count=len(wrong),
        row_count=len(rows),
        data=embedded(
            {"titles": {e["name"]: title_of(e["name"]) for e in entries}, "rows": _page_rows(wrong[:page_rows])}
        ),
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),
        script=Markup((_FOLDER / "script.js").read_text(encoding="utf-8")),
    )


def embedded(value: Any) -> Markup:
    """JSON that may stand inside a script element, whatever the texts in it say."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    safe = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(safe.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def call_text(call: Mapping[str, Any]) -> str:
    """`light_set(area="Küche", level=40)`."""
    arguments = call["arguments"].items()
    return f"{call['name']}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in arguments)})"


def _drawings(report: Mapping[str, Any]) -> dict[str, Markup]:
    entries = {entry["name"]: entry for entry in report["answerers"]}

    def points(key: str, names: Sequence[str]) -> list[charts.Point]:
        return [
            charts.Point(name, title_of(name), e[key] or 0.0, e["exact"], e["exact_low"], e["exact_high"])
            for name in names
            for e in [entries[name]]
        ]

    cost = points("dollars_per_1000", list(entries))
    latency = points("p50_seconds", list(entries))
    ladder = points("exact", [name for name in _LADDER if name in entries])
    drawings = {
        "cost": charts.scatter(
            cost, "Exact calls against cost", "dollars per 1,000 requests", numbers.dollars, numbers.dollar_tick
        ),
        "latency": charts.scatter(
            latency, "Exact calls against latency", "latency, median", numbers.duration, numbers.duration_tick
        ),
        "ladder": charts.ladder(ladder, "Exact calls after each step"),
        "steps": charts.ladder(
            _step_points(report["compress_steps"]), "Exact calls on valid after each compression step"
        ),
        "break_even": Markup(""),
        **front.drawings(report.get("compress_search")),
    }
    even = report["break_even"]
    if even:
        series = [
            ("pipeline", "Teacher pipeline", 0.0, even["pipeline_dollars_per_request"]),
            ("artifact", "Artifact", even["one_off_dollars"], even["artifact_dollars_per_request"]),
        ]
        title = "Cumulative dollars against requests answered"
        drawings["break_even"] = charts.lines(series, title, even["requests"], numbers.dollar_tick)
    return drawings


def _tiles(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The artifact's (or student's) four figures, each beside the pipeline's."""
    entries = {entry["name"]: entry for entry in report["answerers"]}
    ours = entries.get("artifact") or entries.get("student")
    if ours is None:
        return []
    teacher = entries.get("pipeline")
    rows = (
        ("exact calls", "exact", numbers.percent),
        ("latency, median", "p50_seconds", numbers.duration),
        ("per 1,000 requests", "dollars_per_1000", numbers.dollars),
        ("model size", "bytes", numbers.size),
    )
    return [
        {
            "label": label,
            "value": shown(ours[key]),
            "beside": f"pipeline {shown(teacher[key])}" if teacher else "",
        }
        for label, key, shown in rows
    ]


def _functions(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the heat table, the most frequent function first."""
    counts = {name: found["n"] for entry in entries for name, found in entry["by_function"].items()}
    rows = []
    for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        shares = [entry["by_function"][name]["hits"] / n for entry in entries]
        rows.append({"name": name, "n": n, "shares": shares})
    return rows


def _token_shares(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    longest = max((entry["tokens_in"] + entry["tokens_out"] for entry in entries), default=0.0)
    return {
        entry["name"]: (entry["tokens_in"] + entry["tokens_out"]) / longest if longest else 0.0 for entry in entries
    }


def _step(step: Mapping[str, Any]) -> dict[str, str]:
    """A line of the table of compression steps; what a step does not say is a dash."""
    tried = step.get("tried") or {}
    refused = {kind: share for kind, share in tried.items() if kind != step.get("type")}
    name = f"{step['name']} → {step['type']}" if step.get("type") else str(step["name"])
    return {
        "name": name,
        "refused": ", ".join(f"{kind} agreed on {numbers.percent(share)}" for kind, share in refused.items()),
        "parameters": numbers.count(step.get("parameters")),
        "bytes": numbers.size(step.get("bytes")),
        "exact": numbers.percent(step.get("exact")),
        "same": numbers.percent(step.get("same_as_student")),
        "parity": numbers.percent(step.get("agreement")),
        "p50": numbers.duration(step.get("p50_seconds")),
    }


def _gate(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the promotion gate measured of the artifact, and what it refused; empty where there was no gate."""
    last = steps[-1] if steps else {}
    gate = last.get("gate") or {}
    rows = [{"name": "exact calls", **gate["exact"]}] if gate.get("exact") else []
    return {
        "rows": [
            {
                "name": row["name"].replace("_", " "),
                "student": numbers.percent(row["student"]),
                "artifact": numbers.percent(row["artifact"]),
                "change": numbers.points(row["mean"]),
                "interval": f"{numbers.points(row['low'])} to {numbers.points(row['high'])}",
                "n": row["n"],
                "held": "held" if row["ok"] else "broke",
            }
            for row in (*rows, *gate.get("trust", ()))
        ],
        "refused": [f"{other['type']}: {'; '.join(other['broke'])}" for other in last.get("refused") or ()],
        "fell_back": bool(last.get("fell_back")),
    }


def _step_points(steps: Sequence[Mapping[str, Any]]) -> list[charts.Point]:
    """Steps with their exactness on valid; the last one is the artifact."""
    known = [step for step in steps if step.get("exact") is not None]
    return [
        charts.Point(
            "artifact" if step is steps[-1] else "student",
            f"{_short(step)} {step.get('type', '')}".strip(),
            0.0,
            step["exact"],
            step.get("low", step["exact"]),
            step.get("high", step["exact"]),
        )
        for step in known
    ]


def _short(step: Mapping[str, Any]) -> str:
    """A step's name without its settings, short enough for a chart."""
    return str(step.get("method") or step["name"])[:16]


def _page_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    kept = []
    for row in rows:
        answers = {
            name: {key: answer[key] for key in _CALL_KEYS if answer[key] not in (None, "")}
            for name, answer in row["answers"].items()
        }
        shown = {
            "id": row["id"],
            "text": row["request"],
            "gold": row["gold"],
            "fn": row["function"],
            "answers": answers,
        }
        if len(row["messages"]) > 1:
            shown["before"] = [f"{m.get('role', '')}: {m.get('content') or ''}" for m in row["messages"][:-1]]
        kept.append(shown)
    return kept
