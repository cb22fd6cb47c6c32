"""task + language models + a space of pipelines -> the best of them, what its steps are worth, at a bounded price."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from supertiny.core.errors import BudgetReached, UserError, UserErrors
from supertiny.core.files import hash_of, write_json
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.methods import Own, own_methods
from supertiny.core.records import Example
from supertiny.core.run import Run
from supertiny.core.task import STEPS
from supertiny.prototype.demands import mistakes
from supertiny.prototype.search.examiner import PURPOSE, Examiner
from supertiny.prototype.search.halving import Course, halve, round_rows
from supertiny.prototype.search.outcome import told
from supertiny.prototype.search.settings import Settings as Search
from supertiny.prototype.search.space import Candidate, candidates
from supertiny.prototype.search.wordings import kept_wordings
from supertiny.prototype.settings import Settings
from supertiny.prototype.teacher import open_engine

LEAST_ROWS = 8  # of valid; with fewer, chance alone orders pipelines
RESULT = "optimise.json"


def optimise(settings: Settings, search: Search, run: Run) -> dict[str, Any]:
    """Searches on valid, of a task without its test, writes optimise.json into the run's folder and gives what it says.

    Run again it asks what it has not asked yet. Where the budget is reached it says what it has until then. Raises
    UserError where valid has too few rows.
    """
    run = replace(run, task=replace(run.task, test=()))
    rows, halving_rows = _rows(run.task.valid, search, run.seed)
    before = _spending(run.ledger)
    kept_budget = run.ledger.budget
    run.ledger.budget = _within(settings.budget, search.budget, run.ledger)
    examiner = Examiner(settings, run, rows, open_engine)
    try:
        tried, course = _searched(examiner, search, halving_rows)
        outcome = told(examiner, course, tried, search, run.seed)
    finally:
        run.ledger.budget = kept_budget
        examiner.close()
    after = _spending(run.ledger)
    head = {
        "task": run.task.name,
        "seed": run.seed,
        "rows": {"valid": len(run.task.valid), "halving": halving_rows, "fresh": len(rows) - halving_rows},
        "requests": sum(one.n for one in examiner.results.values()),
        "grid_requests": len(tried) * halving_rows,
        "spent": {name: amount - before[name] for name, amount in after.items()},
        "spent_in_all": after,
        "why_none": _why_none(outcome, course, search),
    }
    write_json(run.folder / RESULT, {**head, **outcome})
    return {**head, **outcome}


def _searched(examiner: Examiner, search: Search, rows: int) -> tuple[list[Candidate], Course]:
    settings, run = examiner.settings, examiner.run
    own = own_methods("steps", run.task.folder / STEPS)
    _check(candidates(search, settings, [settings.wording], own), examiner, own)
    wordings = None
    if search.selector is not None:
        try:
            wordings = kept_wordings(examiner, search, run.seed)
        except BudgetReached as reached:
            return candidates(search, settings, own=own), Course(stopped=reached.problem)
    tried = candidates(search, settings, wordings, own)
    plan = round_rows(len(tried), rows, search.keep, search.least_rows)
    run.progress.note(
        f"{len(tried)} pipelines in {len(plan)} rounds of {', '.join(map(str, plan))} rows: about "
        f"{_expected(len(tried), plan, search.keep)} requests, {len(tried) * rows} without rounds; "
        f"{len(examiner.rows) - rows} rows are kept for measuring the choice"
    )
    return tried, halve(examiner, tried, rows, search, run.seed)


def _check(tried: Sequence[Candidate], examiner: Examiner, own: Own) -> None:
    """Raises UserErrors with every pipeline that asks for what its engine or the task does not have."""
    found: dict[str, UserError] = {}
    engines: set[str] = set()
    for candidate in tried:
        engine = hash_of(candidate.engine)
        asked = candidate.within(examiner.settings)
        for error in mistakes(asked, examiner.run.task, own, asks=engine not in engines):
            found.setdefault(error.problem, UserError(f"optimise: {candidate.name}: {error.problem}", error.hint))
        engines.add(engine)
    if found:
        raise UserErrors(list(found.values()))


def _expected(count: int, plan: Sequence[int], keep: int) -> int:
    """Requests of a search where one in `keep` pipelines goes on, and the recipe's own."""
    total, had = 0, 0
    for rows in plan:
        total, had, count = total + count * (rows - had), rows, math.ceil(count / keep) + 1
    return total


def _rows(valid: Sequence[Example], search: Search, seed: int) -> tuple[list[Example], int]:
    """Rows of valid in a drawn order, and how many of them choose; the rest is fresh."""
    count = min(search.rows or len(valid), len(valid))
    if count < LEAST_ROWS:
        which = f"{count} of valid's {len(valid)} rows" if count < len(valid) else f"valid's {count} rows"
        raise UserError(
            f"{which} are too few to choose a pipeline by", f"at least {LEAST_ROWS}, better 100, are wanted"
        )
    drawn = [valid[int(place)] for place in np.random.default_rng(seed).permutation(len(valid))[:count]]
    fresh = round(count * search.fresh_share)
    return drawn, count - fresh if fresh >= LEAST_ROWS and count - fresh >= LEAST_ROWS else count


def _spending(ledger: Ledger, of_search: bool = True) -> dict[str, float]:
    """Calls, dollars, tokens and minutes that searches have spent, or all else has."""
    bills = [b for b in (*ledger.bills(), *ledger.lost()) if b.purpose.startswith(PURPOSE) == of_search]
    return {
        "calls": sum(b.calls for b in bills),
        "dollars": sum(b.dollars for b in bills),
        "tokens": sum(b.tokens_in + b.tokens_out for b in bills),
        "minutes": sum(b.seconds for b in bills) / 60,
    }


def _within(recipe: Budget, search: Budget, ledger: Ledger) -> Budget:
    """A budget for the ledger as a whole that keeps the recipe's, and lets searches spend no more than theirs."""
    others = _spending(ledger, of_search=False)

    def least(name: str) -> float | None:
        whole, own = getattr(recipe, name), getattr(search, name)
        limits = [limit for limit in (whole, None if own is None else own + others[name]) if limit is not None]
        return min(limits, default=None)

    tokens = least("tokens")
    return Budget(least("dollars"), None if tokens is None else int(tokens), least("minutes"))


def _why_none(outcome: Mapping[str, Any], course: Course, search: Search) -> str:
    if outcome["chosen"] is not None:
        return ""
    if not course.rounds:
        return "the budget was reached before every pipeline was measured once; raise it and go on"
    limits = {"seconds": search.seconds_at_most, "dollars": search.dollars_at_most}
    shown = " and ".join(f"{limit:g} {name}" for name, limit in limits.items() if limit is not None)
    return f"no pipeline of the last round keeps to {shown} a request"
