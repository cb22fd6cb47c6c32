"""What a search found: the Pareto front, the choice, what each of its steps is worth, and how sure all that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from supertiny.core.errors import BudgetReached
from supertiny.prototype.search.examiner import Examiner, Measured
from supertiny.prototype.search.halving import Course, by_quality
from supertiny.prototype.search.settings import Settings as Search
from supertiny.prototype.search.space import Candidate

_SAME = 0.05  # share by which dollars and seconds of a request may differ without saying anything


def front(measured: Sequence[Measured]) -> list[Measured]:
    """Those that no other one equals or beats in exact answers, dollars and seconds at once; the best first.

    Two are compared on the rows that both have, and luck on few rows beats nobody who had more.
    """
    return [
        one for one in by_quality(measured) if not any(other.n >= one.n and _beats(other, one) for other in measured)
    ]


def choose(finalists: Sequence[Measured], search: Search) -> Measured | None:
    """The cheapest of those whose share of exact answers is within the tolerance of the best; of equals the shortest.

    None where no pipeline keeps to the limits of dollars and seconds.
    """
    able = [one for one in finalists if one.keeps_to(search)]
    if not able:
        return None
    least = max(one.mean("hits") for one in able) - search.tolerance - 1e-9
    good = [one for one in by_quality(able) if one.mean("hits") >= least]
    cheapest = min(good, key=lambda one: (one.mean("dollars"), one.mean("seconds")))
    prices = [(name, (1 + _SAME) * cheapest.mean(name)) for name in ("dollars", "seconds")]
    alike = [one for one in good if all(one.mean(name) <= price for name, price in prices)]
    return min(alike, key=lambda one: len(one.candidate.steps))


def told(examiner: Examiner, course: Course, tried: Sequence[Candidate], search: Search, seed: int) -> dict[str, Any]:
    """The search as plain values: what is printed, and written as JSON.

    Measures the choice and the recipe's own pipeline on the fresh rows, and the choice without each of its steps on
    all rows; what the budget has no room for is left out.
    """
    own = tried[0]
    compared = [_first_rows(examiner, candidate, course.rows) for candidate in course.finalists]
    chosen = choose(compared, search)
    outcome: dict[str, Any] = {
        "rounds": [{"rows": rows, "pipelines": len(candidates)} for rows, candidates in course.rounds],
        "stopped": course.stopped,
        "present": own.key,
        "chosen": None,
        "fresh": None,
        "worth": [],
    }
    if chosen is not None:
        try:
            title = "the choice on rows that had no part in it"
            pair = [chosen.candidate, own]
            if len(examiner.rows) > course.rows and not course.stopped:
                examiner.measure(pair, len(examiner.rows), title)
                outcome["fresh"] = _fresh(examiner, chosen.candidate, own, course.rows, seed)
            outcome["worth"] += _worth(examiner, chosen.candidate, course.rows, seed)
        except BudgetReached as reached:
            outcome["stopped"] = outcome["stopped"] or reached.problem
        outcome["chosen"] = {**_figures(chosen), **_block(chosen.candidate)}
        outcome["chosen"]["is_present"] = chosen.candidate.key == own.key
        outcome["chosen"]["against_present"] = _interval(chosen.above(_first_rows(examiner, own, course.rows), seed))
    seen = [examiner.measured(candidate) for candidate in tried]
    seen = [one.of(slice(_rows_seen(one.candidate, course, one.n))) for one in seen if one.n]
    best = {id(one) for one in front(seen)}
    outcome["pipelines"] = [
        {
            **_figures(one),
            "front": id(one) in best,
            "against_present": _interval(one.above(examiner.measured(own), seed))
            if one.candidate.key != own.key
            else None,
            "steps": list(one.candidate.steps),
            "engine": one.candidate.engine,
            "format": one.candidate.format,
            "wording": one.candidate.wording,
        }
        for one in sorted(by_quality(seen), key=lambda one: -one.n)
    ]
    outcome["untried"] = len(tried) - len(seen)
    return outcome


def _worth(examiner: Examiner, chosen: Candidate, rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """The choice less the choice without a step, for each step, on all rows that the choice was put to."""
    count = max(rows, examiner.measured(chosen).n)
    whole = _first_rows(examiner, chosen, count)
    for step, rest in chosen.without_each_step():
        examiner.measure([rest], count, f"without {step}")
        without = _first_rows(examiner, rest, count)
        line = {"step": step, **_figures(without), "worth": _interval(whole.above(without, seed))}
        line["adds_seconds"] = whole.mean("seconds") - without.mean("seconds")
        line["adds_dollars"] = whole.mean("dollars") - without.mean("dollars")
        yield line


def _fresh(examiner: Examiner, chosen: Candidate, own: Candidate, rows: int, seed: int) -> dict[str, Any]:
    """Both pipelines on the rows that chose nothing."""
    after = slice(rows, None)
    left, right = examiner.measured(chosen).of(after), examiner.measured(own).of(after)
    return {
        "chosen": _figures(left),
        "present": _figures(right),
        "against_present": _interval(left.above(right, seed)),
    }


def _block(candidate: Candidate) -> dict[str, Any]:
    """What a recipe says under `prototype` to have this pipeline, which may say other things by itself."""
    steps = [dict(block) if isinstance(block, Mapping) else block for block in candidate.steps]
    rest = {"engine": candidate.engine, "format": candidate.format, "wording": candidate.wording}
    return {"prototype": {"steps": steps, **rest}}


def _figures(one: Measured) -> dict[str, Any]:
    low, high = one.interval()
    means = {name: one.mean(name) for name in ("dollars", "seconds")}
    quality = {"exact": one.mean("hits"), "exact_low": low, "exact_high": high, "similarity": one.mean("similar")}
    once = {"calls": one.once.calls, "dollars": one.once.cost.dollars, "seconds": one.once.cost.seconds}
    return {"key": one.candidate.key, "name": one.candidate.name, "n": one.n, **quality, **means, "once": once}


def _interval(difference: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("mean", "low", "high"), difference, strict=True))


def _first_rows(examiner: Examiner, candidate: Candidate, count: int) -> Measured:
    return examiner.measured(candidate).of(slice(count))


def _rows_seen(candidate: Candidate, course: Course, n: int) -> int:
    """Rows that a pipeline had in the rounds: the choice has fresh ones beside them, which are told apart."""
    rounds = [rows for rows, candidates in course.rounds if candidate in candidates]
    return max(rounds, default=n)


def _beats(other: Measured, one: Measured) -> bool:
    """Whether the other is no worse in anything and better in something; costs that differ little count as equal."""
    other = other.of(slice(one.n))
    prices = [(other.mean(name), one.mean(name)) for name in ("dollars", "seconds")]
    no_worse = other.mean("hits") >= one.mean("hits") and all(its <= (1 + _SAME) * mine for its, mine in prices)
    return no_worse and (other.mean("hits") > one.mean("hits") or any(its < (1 - _SAME) * mine for its, mine in prices))
