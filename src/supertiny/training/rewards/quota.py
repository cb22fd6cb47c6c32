"""Right answers share a quota of tokens: those shorter than the group's right answers earn more, longer ones less.

Paper: DRQA, dynamic reasoning quota allocation, 2025, arXiv:2508.17803.
Use when: answers may be short for easy requests and must be long for hard ones; each group sets its own measure.
Differs from the paper: the measure is the mean length of the group's right answers, not that of answers written many
in one prompt; scaled into [0, 1], with -1 for what nobody can read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from supertiny.core.records import Example
from supertiny.training.practice import Sample
from supertiny.training.rewards._trusted import right


@dataclass(frozen=True)
class Quota:
    """(1 + share * (1 - length / mean length of right answers)) / (1 + share) where right, 0 where wrong."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """How much length may add to or take from a right answer, of what being right earns."""

    def __call__(self, example: Example, samples: Sequence[Sample]) -> list[float]:
        hits = right(example, samples)
        lengths = [len(sample.ids) for sample, hit in zip(samples, hits, strict=True) if hit]
        quota = sum(lengths) / len(lengths) if sum(lengths) else 1.0
        return [
            self._earned(len(sample.ids) / quota) if hit else 0.0 if sample.readable else -1.0
            for sample, hit in zip(samples, hits, strict=True)
        ]

    def _earned(self, used: float) -> float:
        """`used` is the share of the quota that the answer took; twice the quota or more is the worst."""
        return (1 + self.share * max(-1.0, 1 - used)) / (1 + self.share)
