"""The report's table in a terminal, and two runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from supertiny.report import numbers
from supertiny.report.verdict import title_of

# Columns of one group stand under each other where the terminal is narrow.
_COLUMNS = (("exact %", "95 %"), ("n",), ("arg F1",), ("p50", "p95"), ("tokens in", "out"), ("size",), ("$ per 1,000",))
_UNLIMITED = 1000  # characters: more than the table ever takes
_EMPHASIS = {"artifact": "bold green", "pipeline": "bold"}


def print_table(report: Mapping[str, Any], console: Console) -> None:
    """The table that ends a run; on a narrow terminal some columns stand under each other."""
    table = _table(report, stacked=False)
    wanted = console.measure(table, options=console.options.update(max_width=_UNLIMITED)).maximum
    if wanted > console.width:
        table = _table(report, stacked=True)
    console.print(escape(report["verdict"]), style="bold", highlight=False)
    console.print()
    console.print(table)


def _table(report: Mapping[str, Any], stacked: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for group in _COLUMNS:
        for name in ["\n".join(group)] if stacked else group:
            table.add_column(name, justify="right", no_wrap=True)
    for entry in report["answerers"]:
        groups = _cells(entry)
        cells = ["\n".join(group) for group in groups] if stacked else [cell for group in groups for cell in group]
        table.add_row(entry["name"], *cells, style=_EMPHASIS.get(entry["name"], ""))
    return table


def _cells(entry: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """An answerer's cells, in the order of `_COLUMNS`."""
    return (
        (f"{100 * entry['exact']:.1f}", numbers.interval(entry["exact_low"], entry["exact_high"])),
        (str(entry["n"]),),
        (f"{entry['argument_f1']:.3f}",),
        (numbers.duration(entry["p50_seconds"]), numbers.duration(entry["p95_seconds"])),
        (numbers.count(entry["tokens_in"]), numbers.count(entry["tokens_out"])),
        (numbers.size(entry["bytes"]),),
        (numbers.dollars(entry["dollars_per_1000"]),),
    )


def compare(
    report_a: Mapping[str, Any], report_b: Mapping[str, Any], names: tuple[str, str] = ("first", "second")
) -> Table:
    """Two runs beside each other, answerer by answerer; changes are second minus first.

    The interval of a change in exact calls treats both test sets as drawn on their own (Newcombe), which is wide
    where they are the same rows.
    """
    first, second = ({entry["name"]: entry for entry in report["answerers"]} for report in (report_a, report_b))
    table = Table(title=f"{escape(names[0])} → {escape(names[1])}", title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("exact %", "change, 95 %", "p50", "size", "$ per 1,000"):
        table.add_column(column, justify="right")
    for name in dict.fromkeys([*first, *second]):
        a, b = first.get(name), second.get(name)
        table.add_row(
            title_of(name),
            _arrow(a, b, "exact", lambda share: f"{100 * share:.1f}"),
            _change(a, b) if a and b else numbers.MISSING,
            _arrow(a, b, "p50_seconds", numbers.duration),
            _arrow(a, b, "bytes", numbers.size),
            _arrow(a, b, "dollars_per_1000", numbers.dollars),
        )
    if report_a.get("hashes", {}).get("task") != report_b.get("hashes", {}).get("task"):
        table.caption = "The two runs are on different tasks: their numbers do not compare."
    return table


def _arrow(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, key: str, shown: Any) -> str:
    left, right = (numbers.MISSING if entry is None else shown(entry[key]) for entry in (a, b))
    return left if left == right else f"{left} → {right}"


def _change(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    mean = b["exact"] - a["exact"]
    low = mean - math.hypot(b["exact"] - b["exact_low"], a["exact_high"] - a["exact"])
    high = mean + math.hypot(b["exact_high"] - b["exact"], a["exact"] - a["exact_low"])
    style = "green" if low > 0 else "red" if high < 0 else "dim"
    text = f"{numbers.points(mean)} ({numbers.points(low)} to {numbers.points(high)})"
    return f"[{style}]{text}[/]"
