"""What a search found, in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from supertiny.core.errors import UserError
from supertiny.prototype.search.recipe_file import as_yaml, unsaid, write_into

_SHOWN = 16  # pipelines
_COLUMNS = ("exact %", "95 %", "n", "s a request", "$ per 1,000", "once")


def print_outcome(outcome: Mapping[str, Any], console: Console) -> None:
    """The pipelines with the Pareto front marked, the choice, what its steps are worth, and what all that took."""
    console.print(_pipelines(outcome))
    for line in _words(outcome):
        console.print(escape(line), highlight=False, soft_wrap=True)
    if outcome["worth"]:
        console.print()
        console.print(_steps(outcome))


def print_choice(outcome: Mapping[str, Any], recipe: Path, write: bool, overridden: bool = False) -> None:
    """The choice as it may be pasted into the recipe; with `write` it is written there, and the change is shown.

    `overridden` says that the search did not start from the recipe as its file has it. Raises UserError where it is to
    be written and nothing was chosen, or the file cannot be edited.
    """
    chosen = outcome["chosen"]
    if chosen is None:
        if write:
            raise UserError(f"nothing is written: {outcome['why_none']}", "the recipe is as it was")
        return
    if chosen["is_present"] and not overridden:
        print(f"the recipe's own pipeline is the best of these: {recipe} stays as it is")
        return
    block = unsaid(recipe, chosen["prototype"])
    print(f"\n{as_yaml(block)}", end="")
    if write:
        changes = write_into(recipe, block)
        kept = f"written into {recipe}; as it was before: {recipe.name}.bak beside it"
        print(f"\n{changes}{kept}" if changes else f"\n{recipe} says so already")
    else:
        print(f"\npaste it into {recipe}, or give --write")


def _pipelines(outcome: Mapping[str, Any]) -> Table:
    entries, chosen = outcome["pipelines"], outcome["chosen"]
    shown = [e for e in entries if e["front"] or e["key"] == outcome["present"]]
    rest = [e for e in entries if e not in shown]
    shown += rest[: max(0, _SHOWN - len(shown))]
    table = Table(box=None, pad_edge=False, header_style="dim", caption_justify="left")
    table.add_column("* Pareto front", overflow="fold")
    for column in (*_COLUMNS, "against the recipe's, 95 %"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in sorted(shown, key=lambda e: (-e["n"], -e["exact"], e["seconds"])):
        marks = "*" if entry["front"] else " "
        own = " (the recipe's)" if entry["key"] == outcome["present"] else ""
        is_chosen = chosen is not None and entry["key"] == chosen["key"]
        style = "bold" if is_chosen else ""
        difference = _difference(entry["against_present"]) if entry["against_present"] else "–"
        table.add_row(escape(f"{marks} {entry['name']}{own}"), *_cells(entry), difference, style=style)
    hidden = len(entries) - len(shown)
    if hidden or outcome["untried"]:
        table.caption = f"and {hidden} more in the JSON file; {outcome['untried']} not measured"
    return table


def _steps(outcome: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("chosen pipeline without", overflow="fold")
    for column in (*_COLUMNS, "the step adds, 95 %"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in outcome["worth"]:
        table.add_row(escape(line["step"]), *_cells(line), _difference(line["worth"]))
    return table


def _words(outcome: Mapping[str, Any]) -> list[str]:
    lines = [""]
    took = outcome["requests"]
    spent = outcome["spent"]
    lines.append(
        f"{len(outcome['pipelines'])} pipelines, {took:,} requests where every one on every row takes "
        f"{outcome['grid_requests']:,}; now {spent['calls']:,} model calls, {spent['minutes']:.1f} min, "
        f"${spent['dollars']:.4f}, {outcome['spent_in_all']['calls']:,} calls with those of earlier times"
    )
    if outcome["stopped"]:
        hint = "raise the search's budget or prototype.budget and run the same command: nothing is paid twice"
        lines.append(f"stopped early: {outcome['stopped']} ({hint})")
    chosen = outcome["chosen"]
    if chosen is None:
        return [*lines, f"nothing is chosen: {outcome['why_none']}"]
    lines.append(
        f"chosen: {chosen['name']}: {_share(chosen)} on the {chosen['n']} rows of valid that chose it, which flatters "
        "it: the best of many looks better than it is"
    )
    fresh = outcome["fresh"]
    if fresh:
        lines.append(
            f"on {fresh['chosen']['n']} rows that had no part in the choice: {_share(fresh['chosen'])}, "
            f"the recipe's {_share(fresh['present'])}, difference {_difference(fresh['against_present'])}"
        )
    else:
        lines.append("it was not measured on fresh rows: trust the figure less")
    return lines


def _cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    interval = f"{100 * entry['exact_low']:.1f}–{100 * entry['exact_high']:.1f}"
    dollars = f"{1000 * entry['dollars']:.3g}" if entry["dollars"] else "0"
    once = entry["once"]
    paid = f", ${once['dollars']:.3g}" if once["dollars"] else ""
    prepared = f"{once['seconds']:.3g} s{paid}" if once["calls"] else "–"
    return f"{100 * entry['exact']:.1f}", interval, str(entry["n"]), f"{entry['seconds']:.3g}", dollars, prepared


def _share(entry: Mapping[str, Any]) -> str:
    low, high = 100 * entry["exact_low"], 100 * entry["exact_high"]
    return f"{100 * entry['exact']:.1f} % exact [{low:.1f}, {high:.1f}]"


def _difference(of: Mapping[str, float]) -> str:
    mean, low, high = (100 * of[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
