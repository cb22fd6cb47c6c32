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

_Name = TypeVar("_Name", str, tuple[str, ...])


@dataclass(frozen=True)
class Balance:
    """A row's group is the set of functions that it calls; "no call" is one. Chosen by seed within equal difficulty."""

    rows: Annotated[int, Field(ge=1)] | None = None
    """Rows in all, shared out as evenly as the groups allow; without it, groups are capped by `times_median`."""
    times_median: Annotated[float, Field(gt=0)] = 3.0
    """A group may have this many times the rows of the median group."""
    most: Annotated[int, Field(ge=1)] | None = None
    """Rows that a group may have at most, whatever the median."""
    difficulty: Literal["distance", "confidence", "retries", "none"] = "distance"
    """Distance from the nearest labelled request, the votes' doubt, or how often the verifier asked again."""
    levels: Annotated[int, Field(ge=1)] = 3
    """Levels of difficulty, each with as many rows of a group; a group's choice is spread evenly over them."""
    keep_labelled: bool = True
    """Whether labelled rows stay even where they alone are more than a group may have."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        generator = random.Random(seed)
        hardness = self._hardness(examples, task)
        groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for place, row in enumerate(examples):
            groups[_functions(row)].append(place)
        quotas = self._quotas({name: len(places) for name, places in groups.items()})
        chosen: set[int] = set()
        for name, places in sorted(groups.items()):
            chosen |= self._choose(places, quotas[name], examples, hardness, generator)
        for place, row in enumerate(examples):
            if place not in chosen:
                group = " and ".join(_functions(row)) or "no call"
                left_out(row, f"{group} has {quotas[_functions(row)]} of its {len(groups[_functions(row)])} rows")
        return [examples[place] for place in sorted(chosen)]

    def _quotas(self, sizes: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
        if self.rows is not None:
            return _shared_out(min(self.rows, sum(sizes.values())), sizes, self.most)
        cap = max(1, round(self.times_median * median(sizes.values()))) if sizes else 0
        return {name: min(size, cap, self.most or size) for name, size in sizes.items()}

    def _choose(
        self,
        places: Sequence[int],
        quota: int,
        examples: Sequence[Example],
        hardness: Sequence[float],
        generator: random.Random,
    ) -> set[int]:
        gold = [place for place in places if is_labelled(examples[place])]
        made = [place for place in places if not is_labelled(examples[place])]
        chosen = set(gold if self.keep_labelled else self._spread(gold, quota, hardness, generator))
        return chosen | set(self._spread(made, quota - len(chosen), hardness, generator))

    def _spread(
        self, places: Sequence[int], count: int, hardness: Sequence[float], generator: random.Random
    ) -> list[int]:
        """`count` of the places, as evenly over the levels as their sizes allow."""
        if count >= len(places):
            return list(places)
        # Equal difficulty is put in random order first, so that no level is a stretch of the file.
        ranked = sorted(generator.sample(list(places), len(places)), key=lambda place: hardness[place])
        cuts = [round(level * len(ranked) / self.levels) for level in range(self.levels + 1)]
        bands = {str(level): ranked[cuts[level] : cuts[level + 1]] for level in range(self.levels)}
        shares = _shared_out(max(0, count), {level: len(band) for level, band in bands.items()}, None)
        return [place for level, band in bands.items() for place in generator.sample(band, shares[level])]

    def _hardness(self, examples: Sequence[Example], task: Task) -> list[float]:
        if self.difficulty == "confidence":
            found = [row.answer.confidence if row.answer else None for row in examples]
            return [0.0 if confidence is None else 1.0 - confidence for confidence in found]
        if self.difficulty == "retries":
            return [float(row.provenance.get("retries", 0)) for row in examples]
        if self.difficulty == "none":
            return [0.0] * len(examples)
        near = NearestExamples(task.labelled).nearest([row.request.text for row in examples], 1)
        return [1.0 - found[0][1] if found else 1.0 for found in near]


def _functions(row: Example) -> tuple[str, ...]:
    return tuple(sorted({call.tool for call in row.answer.calls})) if row.answer else ()


def _shared_out(count: int, sizes: Mapping[_Name, int], most: int | None) -> dict[_Name, int]:
    """`count` given out one by one to whoever has least, never more than its size; the first ones get the rest."""
    given = dict.fromkeys(sizes, 0)
    limits = {name: min(size, most or size) for name, size in sizes.items()}
    left = min(count, sum(limits.values()))
    while left > 0:
        open_names = [name for name in sorted(sizes) if given[name] < limits[name]]
        share = max(1, left // len(open_names))
        for name in open_names:
            step = min(share, limits[name] - given[name], left)
            given[name] += step
            left -= step
    return given
