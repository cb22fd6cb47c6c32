"""Valid in two halves: what is chosen on the rows of one is reported on the rows of the other, and the other way round.

So every row is reported, and none has a say in the choice of the student that answers it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from supertiny.core.records import Answer, Example
from supertiny.core.scoring import argument_counts, f1, is_exact, wilson_interval
from supertiny.core.task import Task

SEED = 7  # of the halves: the same ones for every arm and every seed of a training
SIDES = (0, 1)


@dataclass(frozen=True)
class Exam:
    """Answers to all rows of valid, held against their gold."""

    hits: tuple[bool, ...]
    """Per row whether the answer is exact."""
    counts: tuple[tuple[int, int, int], ...]
    """Of each half the shared, written and gold numbers of functions, arguments and values."""

    def to_json(self) -> dict[str, Any]:
        return {"hits": "".join("01"[hit] for hit in self.hits), "counts": [list(side) for side in self.counts]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Exam:
        first, second = ((int(shared), int(written), int(gold)) for shared, written, gold in row["counts"])
        return cls(tuple(mark == "1" for mark in row["hits"]), (first, second))


@dataclass(frozen=True)
class Result:
    """What one training, or an answerer without one, is worth on valid."""

    hits: tuple[bool, ...]
    """Per row, by the candidate that is best on the other half."""
    choosing: tuple[float, float]
    """For each half, the share on the rows of the other one, that chose: too high, since they did."""
    slot_f1: float
    more: Mapping[str, Any] = field(default_factory=dict)
    """Seconds, tokens, peak memory and the like."""

    @property
    def exact(self) -> float:
        return sum(self.hits) / max(1, len(self.hits))

    @property
    def choosing_exact(self) -> float:
        return sum(self.choosing) / len(self.choosing)

    def to_json(self) -> dict[str, Any]:
        low, high = wilson_interval(sum(self.hits), len(self.hits))
        shares = {"exact": self.exact, "low": low, "high": high, "n": len(self.hits)}
        return {**shares, "choosing_exact": self.choosing_exact, "slot_f1": self.slot_f1, **self.more}


def halves(rows: Sequence[Example]) -> tuple[int, ...]:
    """0 or 1 for each row, by seed and id alone; as many of one as of the other, or one more."""
    order = sorted(range(len(rows)), key=lambda place: random.Random(f"{SEED} {rows[place].request.id}").random())
    side = dict.fromkeys(order[: len(order) // 2], 0)
    return tuple(side.get(place, 1) for place in range(len(rows)))


def examined(answers: Sequence[Answer], rows: Sequence[Example], task: Task) -> Exam:
    gold = [row.answer.calls if row.answer else () for row in rows]
    hits = tuple(is_exact(answer, calls, task.tool_map) for answer, calls in zip(answers, gold, strict=True))
    sides = halves(rows)
    counts = []
    for side in SIDES:
        found = [
            argument_counts(answer.calls, calls, task.tool_map)
            for answer, calls, own in zip(answers, gold, sides, strict=True)
            if own == side
        ]
        shared, written, wanted = (sum(one[place] for one in found) for place in range(3))
        counts.append((shared, written, wanted))
    return Exam(hits, tuple(counts))


def crossed(exams: Mapping[str, Exam], sides: Sequence[int], more: Mapping[str, Any] | None = None) -> Result:
    """Each half by the candidate that is best on the other half; of equal ones the later."""
    hits = [False] * len(sides)
    choosing = [0.0, 0.0]
    counts = [0, 0, 0]
    for side in SIDES:
        others = [place for place, own in enumerate(sides) if own != side]
        best = best_on(exams, others)
        choosing[side] = sum(exams[best].hits[place] for place in others) / max(1, len(others))
        counts = [total + own for total, own in zip(counts, exams[best].counts[side], strict=True)]
        for place, own in enumerate(sides):
            if own == side:
                hits[place] = exams[best].hits[place]
    return Result(tuple(hits), (choosing[0], choosing[1]), f1(*counts), more or {})


def best_on(exams: Mapping[str, Exam], places: Sequence[int]) -> str:
    """The candidate with most hits at these places; of equal ones the later."""
    names = list(exams)
    return max(names, key=lambda name: (sum(exams[name].hits[place] for place in places), names.index(name)))
