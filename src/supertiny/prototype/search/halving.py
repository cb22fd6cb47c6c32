"""Successive halving: many pipelines on few rows, the better ones of them on more, the best on all.

Paper: Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, 2015,
arXiv:1502.07943; here all pipelines see the same rows, and a cheap one that cannot be told from the best stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from supertiny.core.errors import BudgetReached
from supertiny.prototype.search.examiner import Examiner, Measured
from supertiny.prototype.search.settings import Settings as Search
from supertiny.prototype.search.space import Candidate

_CHEAPER = 0.9  # of the others' dollars or seconds: from here on a pipeline counts as cheaper
_SLACK = 1.25  # of a limit that is passed by a mean of few rows


@dataclass
class Course:
    """How a search went."""

    rounds: list[tuple[int, list[Candidate]]] = field(default_factory=list)
    """(rows, pipelines) of each round that was finished; rows of a round are the first rows of the next."""
    stopped: str = ""
    """Why it ended early; empty where it did not."""

    @property
    def finalists(self) -> list[Candidate]:
        return self.rounds[-1][1] if self.rounds else []

    @property
    def rows(self) -> int:
        """Rows of the last finished round."""
        return self.rounds[-1][0] if self.rounds else 0


def round_rows(candidates: int, rows: int, keep: int, least: int) -> list[int]:
    """Rows of each round, rising to all of them: as many rounds as the pipelines want and the rows allow.

    One in `keep` pipelines is to be left after each round, and the first round is to have `least` rows.
    """
    wanted = math.ceil(round(math.log(max(1, candidates), keep), 9)) + 1
    allowed = 1 + max(0, math.floor(math.log(max(1.0, rows / least), keep)))
    count = min(wanted, allowed)
    return [math.ceil(rows / keep ** (count - 1 - number)) for number in range(count)]


def halve(examiner: Examiner, candidates: Sequence[Candidate], rows: int, search: Search, seed: int) -> Course:
    """Goes through the rounds; the first candidate, the recipe's own pipeline, stays in all of them.

    Where the budget is reached it ends with the rounds that it has finished.
    """
    course, alive = Course(), list(candidates)
    plan = round_rows(len(candidates), rows, search.keep, search.least_rows)
    for number, count in enumerate(plan, 1):
        title = f"round {number} of {len(plan)}: {len(alive)} pipelines, {count} rows each"
        try:
            examiner.measure(alive, count, title)
        except BudgetReached as reached:
            course.stopped = reached.problem
            return course
        course.rounds.append((count, alive))
        if number < len(plan):
            measured = [examiner.measured(candidate) for candidate in alive]
            alive = [one.candidate for one in survivors(measured, examiner.measured(candidates[0]), search, seed)]
    return course


def survivors(measured: Sequence[Measured], own: Measured, search: Search, seed: int) -> list[Measured]:
    """Who goes on: the best one in `keep`, less those that a better and cheaper one clearly beats.

    Besides them stay cheap ones that the rows do not tell from the best, the best that keeps to the search's limits,
    and the recipe's own, to compare with.
    """
    ranked = by_quality(measured)
    ranked = [one for one in ranked if one.keeps_to(search, _SLACK)] or ranked
    best, quota = ranked[0], math.ceil(len(measured) / search.keep)
    stay = [best]
    for place, one in enumerate(ranked[1:], 1):
        high = one.above(best, seed)[2]
        cheaper = _is_cheaper(one, [best] if place < quota else stay)
        if (place < quota and (high >= 0 or cheaper)) or (place >= quota and high >= 0 and cheaper):
            stay.append(one)
        if len(stay) >= 2 * quota:
            break
    safe = [one for one in ranked if one.keeps_to(search)][:1]
    return list({id(one): one for one in (*stay, *safe, own)}.values())


def by_quality(measured: Sequence[Measured]) -> list[Measured]:
    """Most exact answers first; then those nearer to gold, then the faster ones."""
    return sorted(measured, key=lambda one: (-one.mean("hits"), -round(one.mean("similar"), 6), one.mean("seconds")))


def _is_cheaper(one: Measured, others: Sequence[Measured]) -> bool:
    return any(one.mean(name) < _CHEAPER * min(other.mean(name) for other in others) for name in ("dollars", "seconds"))
