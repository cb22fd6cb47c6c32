"""Leads the rows through the recipe's curators: what each dropped, made and changed, why, and at what price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from supertiny.core.ledger import Bill
from supertiny.core.methods import build, cards
from supertiny.core.protocols import Curator, Engine
from supertiny.core.records import Example
from supertiny.core.run import Run
from supertiny.prototype.bench import Shelf
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.curators._reasons import reasons_heard
from supertiny.prototype.curators._scores import Scores
from supertiny.prototype.settings import Settings
from supertiny.prototype.teacher import pipeline_of

_PURPOSE = "curator"


@dataclass(frozen=True)
class Named:
    """A recipe's curator, ready to work; `name` tells apart those that are there several times."""

    name: str
    method: str
    curator: Curator

    @property
    def needs(self) -> tuple[str, ...]:
        """Words of what it is handed beside the rows."""
        return tuple(getattr(self.curator, "needs", ()))


@dataclass(frozen=True)
class Curated:
    """What the curators left."""

    kept: list[Example]
    rejected: list[Mapping[str, Any]]
    """Rows that were left out, each with `rejected`: by whom and why."""
    counts: list[Mapping[str, Any]]
    """Per curator: rows before and after, dropped, made, changed, and what its model calls took."""


def curators_of(settings: Settings) -> list[Named]:
    """The recipe's curators, in order."""
    built: list[Named] = []
    for number, block in enumerate(settings.curators):
        method = block if isinstance(block, str) else str(block["method"])
        before = sum(one.method == method for one in built)
        curator = build("curators", block, f"prototype.curators.{number}")
        built.append(Named(f"{method} {before + 1}" if before else method, method, curator))
    return built


def curate(
    curators: Sequence[Named], settings: Settings, run: Run, rows: Sequence[Example], engine: Engine, shelf: Shelf
) -> Curated:
    """Unreadable answers are left out before the first curator that cannot mend them; nobody learns from them."""
    curated = Curated(list(rows), [], [])
    with ExitStack() as opened:
        scores = Scores(wrap=lambda own: run.ledger.wrap(own, "scores for curators"), note=run.progress.note)
        opened.callback(scores.close)
        readable = False
        for named in curators:
            if not readable and not getattr(named.curator, "mends", False):
                readable = _leave_out_unreadable(curated)
            _lead(named, curated, settings, run, engine, shelf, scores)
        if not readable:
            _leave_out_unreadable(curated)
    return curated


def _lead(
    named: Named, curated: Curated, settings: Settings, run: Run, engine: Engine, shelf: Shelf, scores: Scores
) -> None:
    before = list(curated.kept)
    purpose = f"{_PURPOSE} {named.name}"
    with reasons_heard() as reasons, ExitStack() as shown:
        more: dict[str, Any] = {}
        if named.needs:
            pipeline = pipeline_of(settings, run, engine, purpose, shelf=shelf)
            if "live_teacher" in named.needs:
                calls = getattr(named.curator, "model_calls", lambda *_: 0.0)(before, pipeline.calls_per_request)
                tick = shown.enter_context(run.progress.task(named.name, calls, "calls"))
                pipeline.bench = replace(pipeline.bench, advance=tick)
            more["bench"] = CuratorBench(pipeline.bench, pipeline.answer, scores, run.folder)
        after = named.curator.curate(before, run.task, run.seed, **more)
    ids, old = {row.request.id for row in after}, {row.request.id: row for row in before}
    dropped = [row for row in before if row.request.id not in ids]
    summary = _summary(named.method)
    for row in dropped:
        _reject(curated, row, named.name, reasons.get(row.request.id, summary))
    made = sum(row.request.id not in old for row in after)
    changed = sum(row.request.id in old and row != old[row.request.id] for row in after)
    counts = {"before": len(before), "after": len(after), "dropped": len(dropped), "made": made, "changed": changed}
    curated.counts.append({"curator": named.name, **counts, **_spent(run.ledger.bills(purpose), purpose)})
    curated.kept[:] = after
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if what in ("made", "changed") and count)
    run.progress.note(f"  {named.name}: {len(before)} -> {len(after)} rows" + (f" ({told})" if told else ""))


def _leave_out_unreadable(curated: Curated) -> bool:
    kept = []
    for row in curated.kept:
        if row.answer is not None and row.answer.readable:
            kept.append(row)
        else:
            _reject(curated, row, "pipeline", "unreadable answer")
    curated.kept[:] = kept
    return True


def _reject(curated: Curated, row: Example, by: str, reason: str) -> None:
    curated.rejected.append({**row.to_json(), "rejected": {"by": by, "reason": reason}})


def _summary(method: str) -> str:
    """What the method says of itself, where it gave no reason."""
    known = cards("curators")
    return known[method].summary if method in known else ""


def _spent(bills: Sequence[Bill], purpose: str) -> dict[str, Any]:
    """The bill of a curator's own model calls; nothing where it made none."""
    own = next((bill for bill in bills if bill.purpose == purpose), None)
    if own is None:
        return {}
    spent = {"calls": own.calls, "dollars": own.dollars, "seconds": own.seconds}
    return {**spent, "tokens_in": own.tokens_in, "tokens_out": own.tokens_out}
