"""Leads the rows through the recipe's curators: what each dropped, made and changed, why, and at what price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.protocols import Curator, Engine
from supertiny.core.records import Example
from supertiny.core.run import Run
from supertiny.core.task import Task
from supertiny.prototype.bench import Shelf
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.curators._reasons import reasons_heard
from supertiny.prototype.curators.scrub import Scrub
from supertiny.prototype.settings import Settings
from supertiny.prototype.teacher import pipeline_of

Curators = Mapping[str, Curator]
"""The recipe's curators, in order, by name."""


@dataclass(frozen=True)
class Curated:
    """What the curators left."""

    kept: list[Example]
    rejected: list[Example]
    """Rows that were left out; `rejected` in their provenance says by whom and why."""
    counts: list[Mapping[str, Any]]
    """Per curator: rows before and after, dropped, made, changed, and what its model calls took."""


def curators_of(settings: Settings) -> Curators:
    """The recipe's curators; a number tells apart those that are there several times.

    Raises UserError where one asks the teacher when personal data is gone from the rows: what the teacher is shown and
    may repeat still has it.
    """
    built: dict[str, Curator] = {}
    for number, block in enumerate(settings.curators):
        method, place = block if isinstance(block, str) else str(block["method"]), f"prototype.curators.{number}"
        before = sum(name.split(" ")[0] == method for name in built)
        curator = build("curators", block, place)
        if asks_teacher(curator) and any(isinstance(one, Scrub) for one in built.values()):
            raise UserError(f"{place}: {method} asks the teacher, and stands behind scrub", "put scrub behind it")
        built[f"{method} {before + 1}" if before else method] = curator
    return built


def asks_teacher(curator: Curator) -> bool:
    return "live_teacher" in getattr(curator, "needs", ())


def teacher_calls(curators: Curators, rows: Sequence[Example], calls_per_request: float) -> float:
    """Model calls that curators are expected to ask of the teacher, were they given these rows."""
    return sum(
        curator.model_calls(rows, calls_per_request)  # type: ignore[attr-defined]
        for curator in curators.values()
        if asks_teacher(curator)
    )


def stored(curators: Curators, rows: Sequence[Example], task: Task, seed: int) -> list[Example]:
    """The rows as they may lie in files: with stand-ins for personal data where the recipe scrubs."""
    for curator in curators.values():
        if isinstance(curator, Scrub):
            rows = curator.scrubbed(rows, task, seed)
    return list(rows)


def curate(
    curators: Curators, settings: Settings, run: Run, rows: Sequence[Example], engine: Engine, shelf: Shelf
) -> Curated:
    """Unreadable answers are left out before the first curator that cannot mend them; nobody learns from them.

    The shelf keeps the models that curators open.
    """
    curated = Curated(list(rows), [], [])
    for name, curator in curators.items():
        if not getattr(curator, "mends", False):
            _leave_out_unreadable(curated)
        _lead(name, curator, curated, settings, run, engine, shelf)
        if isinstance(curator, Scrub):  # those that are left out behind it have stand-ins already
            curated.rejected[:] = curator.scrubbed(curated.rejected, run.task, run.seed)
    _leave_out_unreadable(curated)
    return curated


def _lead(
    name: str, curator: Curator, curated: Curated, settings: Settings, run: Run, engine: Engine, shelf: Shelf
) -> None:
    before, purpose = list(curated.kept), f"curator {name}"
    with reasons_heard() as reasons, ExitStack() as shown:
        more: dict[str, Any] = {}
        if getattr(curator, "needs", ()):
            pipeline = pipeline_of(settings, run, engine, purpose, shelf=shelf)
            if asks_teacher(curator):
                calls = teacher_calls({name: curator}, before, pipeline.calls_per_request)
                run.progress.note(f"  {name} asks the teacher about {calls:.0f} times")
                tick = shown.enter_context(run.progress.task(name, calls, "calls"))
                pipeline.bench = replace(pipeline.bench, advance=tick)
            more["bench"] = CuratorBench(pipeline.bench, pipeline.answer, run.folder, name)
        after = curator.curate(before, run.task, run.seed, **more)
    ids, old = {row.request.id for row in after}, {row.request.id: row for row in before}
    dropped = [row for row in before if row.request.id not in ids]
    for row in dropped:
        _reject(curated, row, name, reasons.get(row.request.id, ""))
    made = sum(row.request.id not in old for row in after)
    changed = sum(row.request.id in old and row != old[row.request.id] for row in after)
    counts = {"before": len(before), "after": len(after), "dropped": len(dropped), "made": made, "changed": changed}
    curated.counts.append({"curator": name, **counts, **_spent(run, purpose)})
    curated.kept[:] = after
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if what in ("made", "changed") and count)
    run.progress.note(f"  {name}: {len(before)} -> {len(after)} rows" + (f" ({told})" if told else ""))
    if isinstance(curator, Scrub) and not curator.finds_names:
        run.progress.note(f"  {name} replaces no names of people: it is told neither `names` nor `name_pattern`")


def _leave_out_unreadable(curated: Curated) -> None:
    rows = list(curated.kept)
    curated.kept[:] = [row for row in rows if row.answer is not None and row.answer.readable]
    for row in rows:
        if row.answer is None or not row.answer.readable:
            _reject(curated, row, "pipeline", "unreadable answer")


def _reject(curated: Curated, row: Example, by: str, reason: str) -> None:
    provenance = {**row.provenance, "rejected": {"by": by, "reason": reason}}
    curated.rejected.append(replace(row, provenance=provenance))


def _spent(run: Run, purpose: str) -> dict[str, Any]:
    """The bill of a curator's own model calls; nothing where it made none."""
    own = next((asdict(bill) for bill in run.ledger.bills(purpose) if bill.purpose == purpose), {})
    return {name: value for name, value in own.items() if name != "purpose"}
