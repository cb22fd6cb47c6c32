"""Each divergence and each adapter in the same recipe: quality, seconds, peak memory, and the share that learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks._arms import BY_NAME, IMITATE, Place, cell_of
from benchmarks._halves import Result, crossed, halves
from benchmarks._measuring import Row
from benchmarks.data_selection import drawn
from supertiny.core.errors import UserError, nearest_word
from supertiny.core.methods import cards
from supertiny.core.scoring import wilson_interval

# The divergence alone, from the student of the labelled rows towards that of all verified ones.
DISTIL = {"method": "distil", "passes": 1, "rows": 16, "learning_rate": 2e-4, "truth_share": 0.0}
ADAPTED_ROWS = 800
ADAPTED = {**IMITATE, "passes": 2}
# Few weights learn at ten times the rate of all; each half takes the one of two that is better on the other.
RATES, RATES_OF_ALL = (3e-3, 1e-2), (3e-4, 1e-3)
SHOWN = ("loss_on_valid", "seconds", "peak_gb", "trainable")
Made = tuple[list[Row], list[dict[str, Any]], dict[str, str]]
"""(figures, a table, method -> why it has none)."""


def divergences(place: Place) -> Made:
    """One pass of each from one student to one teacher, by the first seed."""
    names = chosen(place.methods, "divergences")
    if not names:
        return [], [], {}  # nobody is taught for a table without lines
    seed = place.seeds[0]
    try:
        start, teacher = (_student(place, name, seed) for name in ("labelled_only", "verified"))
    except UserError as error:
        return [], [], {"divergences": str(error)}
    found: dict[str, Result] = {}
    without: dict[str, str] = {}
    from benchmarks._pupils import Cell, done

    for name in names:
        block = place.learner({**DISTIL, "divergence": name})
        rows = place.rows("verified")
        cell = Cell(place.task, place.student, seed, block, rows, start, teachers=(teacher,), exams=1)
        try:
            result = done(cell, place.folder, place.progress, f"{place.task.name}, {name}")
        except UserError as error:
            without[name] = str(error)
        else:
            found[name] = result
    return (*_told(place, "divergence", found), without)


def adapters(place: Place) -> Made:
    """Each taught by `imitate` on the same rows, by the first seed, at each of two rates."""
    from benchmarks._pupils import Cell, exams_of

    seed = place.seeds[0]
    rows = drawn(place.rows("verified"), seed, ADAPTED_ROWS)
    found: dict[str, Result] = {}
    without: dict[str, str] = {}
    for name in chosen(place.methods, "adapters"):
        candidates, more = {}, dict[str, Any]()
        rates = RATES_OF_ALL if name == "full" else RATES
        for rate in rates[:1] if place.quick else rates:
            block = place.learner({**ADAPTED, "learning_rate": rate})
            cell = Cell(place.task, place.student, seed, block, rows, adapter=name, exams=1)
            try:
                exams, told = exams_of(cell, place.folder, place.progress, f"{place.task.name}, {name} at {rate}")
            except UserError as error:  # such as a rate at which it diverges
                without[f"{name} at {rate}"] = str(error)
                continue
            candidates[str(rate)] = exams[max(exams, key=int)]
            more = dict(told) if not more or told["loss_on_valid"] < more["loss_on_valid"] else more
        if candidates:
            found[name] = crossed(candidates, halves(place.task.valid), more)
    return (*_told(place, "adapter", found), without)


def chosen(names: Sequence[str], family: str) -> list[str]:
    """The family's methods that are among `names`; all, where nothing is named."""
    return [name for name in cards(family) if not names or name in names]


def check_methods(names: Sequence[str], families: Sequence[str]) -> None:
    """Raises UserError for a name that none of the families, whose tables are asked for, has."""
    if names and not families:
        raise UserError("--methods chooses for two tables, and neither is asked for", "add --part adapters")
    known = [name for family in families for name in cards(family)]
    for name in names:
        if name not in known:
            raise UserError(f"no method {name!r} in {' or '.join(families)}", nearest_word(name, known))


def _student(place: Place, name: str, seed: int) -> Any:
    """The folder of an arm's cell, taught where it was not yet."""
    from benchmarks._pupils import done, place_of

    cell = cell_of(place, BY_NAME[name], seed)
    done(cell, place.folder, place.progress, f"{place.task.name}, {name}, seed {seed}")
    return place_of(cell, place.folder)


def _told(place: Place, family: str, found: Mapping[str, Result]) -> tuple[list[Row], list[dict[str, Any]]]:
    figures: list[Row] = []
    table = []
    for name, one in found.items():
        low, high = wilson_interval(sum(one.hits), len(one.hits))
        figures.append((f"{place.task.name}_{family}_{name}_exact", "exact on valid", one.exact))
        row = {"task": place.task.name, family: name, "exact": one.exact, "low": low, "high": high, "n": len(one.hits)}
        table.append({**row, **{key: one.more[key] for key in SHOWN}})
    return figures, table
