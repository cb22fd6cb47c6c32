"""Evens out how many rows each function has, and takes rows of every difficulty for it.

Use when: logs hold one function a thousand times and another twice; the student then forgets the rare one.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Example
from supertiny.core.task import Task
from supertiny.prototype.curators._reasons import is_labelled, left_out

_Name = TypeVar("_Name", int, tuple[str, ...])


@dataclass(frozen=True)
class Balance:
    """A row's group is the set of functions that it calls; "no call" is one. Labelled rows always stay."""

    rows: Annotated[int, Field(ge=1)] | None = None
    """Rows in all, shared out as evenly as the groups allow; without it, groups are capped by `times_median`."""
    times_median: Annotated[float, Field(gt=0)] = 3.0
    """A group may have this many times the rows of the median group."""
    difficulty: Literal["distance", "confidence"] = "distance"
    """Distance from the nearest labelled request, or the votes' doubt."""
    levels: Annotated[int, Field(ge=1)] = 3
    """Levels of difficulty, each with as many rows of a group; a group's choice is spread evenly over them."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        generator = random.Random(seed)
        hardness = self._hardness(examples, task)
        groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for place, row in enumerate(examples):
            groups[_functions(row)].append(place)
        quotas = self._quotas({name: len(places) for name, places in groups.items()})
        chosen: set[int] = set()
        for functions, places in sorted(groups.items()):
            gold = {place for place in places if is_labelled(examples[place])}
            made = [place for place in places if place not in gold]
            kept = gold | self._spread(made, quotas[functions] - len(gold), hardness, generator)
            for place in set(places) - kept:
                name = " and ".join(functions) or "no call"
                left_out(examples[place], f"{name} has {len(kept)} of its {len(places)} rows")
            chosen |= kept
        return [examples[place] for place in sorted(chosen)]

    def _quotas(self, sizes: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
        if self.rows is not None:
            return _shared_out(self.rows, sizes)
        cap = max(1, round(self.times_median * median(sizes.values()))) if sizes else 0
        return {name: min(size, cap) for name, size in sizes.items()}

    def _spread(
        self, places: Sequence[int], count: int, hardness: Sequence[float], generator: random.Random
    ) -> set[int]:
        """`count` of the places, as evenly over the levels as their sizes allow."""
        if count >= len(places):
            return set(places)
        # Equal difficulty is put in random order first, so that no level is a stretch of the file.
        ranked = sorted(generator.sample(list(places), len(places)), key=lambda place: hardness[place])
        cuts = [round(level * len(ranked) / self.levels) for level in range(self.levels + 1)]
        bands = {level: ranked[cuts[level] : cuts[level + 1]] for level in range(self.levels)}
        shares = _shared_out(max(0, count), {level: len(band) for level, band in bands.items()})
        return {place for level, band in bands.items() for place in generator.sample(band, shares[level])}

    def _hardness(self, examples: Sequence[Example], task: Task) -> list[float]:
        if self.difficulty == "confidence":
            found = [row.answer.confidence if row.answer else None for row in examples]
            return [0.0 if confidence is None else 1.0 - confidence for confidence in found]
        near = NearestExamples(task.labelled).nearest([row.request.text for row in examples], 1)
        return [1.0 - found[0][1] if found else 1.0 for found in near]


def _functions(row: Example) -> tuple[str, ...]:
    return tuple(sorted({call.tool for call in row.answer.calls})) if row.answer else ()


def _shared_out(count: int, sizes: Mapping[_Name, int]) -> dict[_Name, int]:
    """`count` given out one by one to whoever has least, never more than its size; the first ones get the rest."""
    given = dict.fromkeys(sizes, 0)
    left = min(count, sum(sizes.values()))
    while left > 0:
        open_names = [name for name in sorted(sizes) if given[name] < sizes[name]]
        share = max(1, left // len(open_names))
        for name in open_names:
            step = min(share, sizes[name] - given[name], left)
            given[name] += step
            left -= step
    return given
