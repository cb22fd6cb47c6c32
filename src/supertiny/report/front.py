"""What a compress search found: the front of quality, bytes and latency, on the page and in a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from supertiny.core.files import read_json, read_rows, write_json, write_text
from supertiny.report import charts, numbers
from supertiny.report.redact import redacted

_COLUMNS = ("", "exact %", "95 %", "size", "p50", "weights", "")


def search_of(run_folder: Path) -> dict[str, Any] | None:
    """What `supertiny compress` wrote of a run; None where it was not asked."""
    path = run_folder / "compress_search" / "search.json"
    return read_json(path) if path.is_file() else None


def show_search(run_folder: Path, page_rows: int) -> None:
    """Writes a finished report anew, with what the search found; nothing else of it is measured again."""
    from supertiny.report.markdown import markdown
    from supertiny.report.page import page

    folder = run_folder / "report"
    if not (folder / "report.json").is_file():
        return  # the report stage will show it
    report = {**read_json(folder / "report.json"), "compress_search": redacted(search_of(run_folder))}
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", markdown(report))
    write_text(folder / "report.html", page(report, read_rows(folder / "rows.jsonl"), page_rows))


def lines(outcome: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of the table of points, the most exact first; what a point does not say is a dash."""
    points = [point for point in (outcome or {}).get("points", ()) if "failed" not in point]
    return [
        {
            "name": point["name"],
            "exact": numbers.percent(point["exact"]),
            "interval": numbers.interval(point["low"], point["high"]),
            "bytes": numbers.size(point["bytes"]),
            "p50": numbers.duration(point["p50_seconds"]),
            "parameters": numbers.count(point["parameters"]),
            "on_front": point["on_front"],
            "chosen": point["name"] == (outcome or {}).get("chosen"),
            "said": said(point),
        }
        for point in sorted(points, key=lambda point: (-point["exact"], point["bytes"]))
    ]


def said(point: Mapping[str, Any]) -> str:
    """What of the budget a point misses, and what it broke."""
    over = [f"above the limit of {name}" for name in point["over"]]
    broke = [f"not promoted: {text}" for text in point["gate"]["broke"]]
    return "; ".join([*over, *broke])


def sentence(outcome: Mapping[str, Any]) -> str:
    """What came out, in a sentence."""
    asked = outcome["budget"] or "no limit"
    if outcome["chosen"]:
        return f"Within {asked}: {outcome['chosen']}."
    near = next((point for point in outcome["points"] if point["name"] == outcome["nearest"]), None)
    if near is None:
        return f"Nothing was measured within {asked}."
    return f"No point keeps {asked} and is promoted; the nearest is {near['name']} ({said(near)})."


def drawings(outcome: Mapping[str, Any] | None) -> dict[str, Markup]:
    """Exact calls on valid against bytes and against latency; points of the front are drawn as the artifact is."""
    points = [point for point in (outcome or {}).get("points", ()) if "failed" not in point]
    sizes = _marks(points, "bytes")
    times = _marks(points, "p50_seconds")
    return {
        "front_bytes": charts.scatter(
            sizes, "Exact calls on valid against bytes", "size of the file", numbers.size, numbers.size
        ),
        "front_latency": charts.scatter(
            times, "Exact calls on valid against latency", "latency, median", numbers.duration, numbers.duration_tick
        ),
    }


def _marks(points: Sequence[Mapping[str, Any]], key: str) -> list[charts.Point]:
    """Points of the front have their name; the others would only cover these with theirs."""
    return [
        charts.Point(
            "artifact" if point["on_front"] else "tfidf_floor",
            point["name"] if point["on_front"] else "",
            point[key] or 0.0,
            point["exact"],
            point["low"],
            point["high"],
        )
        for point in points
    ]


def print_front(outcome: Mapping[str, Any], console: Console) -> None:
    """A line for each point; those of the front are marked, and the one that is best within the budget is bold."""
    console.print(escape(sentence(outcome)), style="bold", highlight=False)
    console.print()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if not name else "right")
    for line in lines(outcome):
        cells = (line["exact"], line["interval"], line["bytes"], line["p50"], line["parameters"], escape(line["said"]))
        mark = "* " if line["on_front"] else "  "
        table.add_row(mark + escape(line["name"]), *cells, style="bold green" if line["chosen"] else "")
    console.print(table)
    for point in outcome["points"]:
        if "failed" in point:
            console.print(f"  {escape(point['name'])} cannot be had: {escape(point['failed'])}", highlight=False)
    taken = next((point for point in outcome["points"] if point["name"] == outcome["chosen"]), None)
    if taken is not None:
        console.print(f"\ncompress.steps: {escape(json.dumps(taken['steps']))}", highlight=False, soft_wrap=True)
