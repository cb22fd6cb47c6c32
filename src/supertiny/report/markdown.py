"""The report in brief, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from supertiny.report import front, numbers
from supertiny.report.verdict import sureness, title_of

COLUMNS = ("", "exact", "95 %", "n", "argument F1", "p50", "p95", "tokens in", "tokens out", "size", "$ per 1,000")


def cells(entry: Mapping[str, Any]) -> list[str]:
    """An answerer's line of the main table, in the order of `COLUMNS`."""
    return [
        title_of(entry["name"]),
        numbers.percent(entry["exact"]),
        numbers.interval(entry["exact_low"], entry["exact_high"]),
        numbers.count(entry["n"]),
        f"{entry['argument_f1']:.3f}",
        numbers.duration(entry["p50_seconds"]),
        numbers.duration(entry["p95_seconds"]),
        numbers.count(entry["tokens_in"]),
        numbers.count(entry["tokens_out"]),
        numbers.size(entry["bytes"]),
        numbers.dollars(entry["dollars_per_1000"]),
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """report.md: verdict, main table, differences, costs."""
    task = report["task"]
    lines = [f"# {_plain(task['name'])}: report", "", f"**{report['verdict']}**", ""]
    lines += _table(COLUMNS, [cells(entry) for entry in report["answerers"]])
    hourly = numbers.dollars(report["costs"]["dollars_per_hour"])
    lines += ["", f"Machine time is priced at {hourly} an hour. Latency: single requests, one at a time.", ""]
    if report["differences"]:
        lines += ["## Differences in exact calls, in points", ""]
        head = ("", "difference", "95 %", "")
        lines += [*_table(head, [_difference(row) for row in report["differences"]]), ""]
    lines += ["## What the project cost", ""]
    spent = ("", "calls", "tokens in", "tokens out", "time", "dollars")
    lines += [*_table(spent, [_cost(item) for item in report["costs"]["items"]]), "", _break_even(report), ""]
    if report["step_prices"]:
        lines += ["## What each step of the pipeline takes, per request of the pool", ""]
        priced = ("", "calls", "tokens in", "tokens out", "time", "$ per 1,000")
        lines += [*_table(priced, [_step(step) for step in report["step_prices"]]), ""]
    if report.get("learners"):
        lines += ["## What each learner bought, on valid", ""]
        heading = ("", "lessons", "exact before", "exact after", "95 %", "bought", "tokens", "time")
        lines += [*_table(heading, [_learner(row) for row in report["learners"]]), ""]
    lines += _front(report.get("compress_search"))
    saving = report["prompt_saving"]
    if saving:
        told, learned = numbers.count(saving["pipeline_tokens_in"]), numbers.count(saving["learned_tokens_in"])
        lines += [f"Prompt tokens per request: {told} in the pipeline, {learned} where the tools are learned.", ""]
    machine = report["machine"]
    where = f"{machine.get('processor', 'unknown processor')}, {machine.get('cores', '?')} cores"
    lines += [f"Machine: {where}. Seed {report['seed']}. Rows: [{report['rows']}]({report['rows']}).", ""]
    return "\n".join(lines)


def _front(search: Mapping[str, Any] | None) -> list[str]:
    if not search:
        return []
    head = ("", "exact", "95 %", "size", "p50", "parameters", "")
    keys = ("name", "exact", "interval", "bytes", "p50", "parameters", "said")
    table = _table(head, [[str(point[key]) for key in keys] for point in front.lines(search)])
    return ["## The front of smaller models, on valid", "", _plain(front.sentence(search)), "", *table, ""]


def _difference(row: Mapping[str, Any]) -> list[str]:
    low, high = numbers.points(row["low"]), numbers.points(row["high"])
    names = f"{title_of(row['left'])} − {title_of(row['right'])}"
    return [names, numbers.points(row["mean"]), f"{low} to {high}", sureness(row["low"], row["high"])]


def _cost(item: Mapping[str, Any]) -> list[str]:
    counts = [numbers.count(item.get(key)) for key in ("calls", "tokens_in", "tokens_out")]
    name = item["name"] if item["one_off"] else f"{item['name']} (measuring, not in the sum)"
    return [name, *counts, numbers.duration(item["seconds"]), numbers.dollars(item["dollars"])]


def _step(step: Mapping[str, Any]) -> list[str]:
    counts = [f"{step['calls']:.2f}", numbers.count(step["tokens_in"]), numbers.count(step["tokens_out"])]
    return [step["name"], *counts, numbers.duration(step["seconds"]), numbers.dollars(1000 * step["dollars"])]


def _learner(row: Mapping[str, Any]) -> list[str]:
    whose = "" if row["student"] == "student" else f" ({title_of(row['student'])})"
    before = row["before"]
    return [
        f"{row['learner']}{whose}",
        numbers.count(row["lessons"]),
        numbers.percent(before),
        numbers.percent(row["valid_exact"]),
        numbers.interval(row["low"], row["high"]),
        numbers.MISSING if before is None else numbers.points(row["valid_exact"] - before),
        numbers.count(row["tokens"]),
        numbers.duration(row["seconds"]),
    ]


def _break_even(report: Mapping[str, Any]) -> str:
    one_off = numbers.dollars(report["costs"]["one_off_dollars"])
    even = report["break_even"]
    if even is None:
        return f"Once: {one_off}."
    if even["requests"] is None:
        return f"Once: {one_off}. The artifact is not cheaper than the pipeline, so this is not earned back."
    return f"Once: {one_off}, earned back after {numbers.count(even['requests'])} requests."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in (head, rule, *rows)]


def _plain(text: str) -> str:
    """Text that cannot break a table or a heading."""
    return " ".join(text.replace("|", "\\|").split())
