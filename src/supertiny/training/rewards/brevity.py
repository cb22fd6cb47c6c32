"""Another reward, of which right answers lose a share for being longer than the shortest right one of their group.

Paper: Team Kimi, Kimi k1.5 (length penalty), 2025, arXiv:2501.12599.
Use when: answers carry words that nobody asked for, or a meaning has several spellings and the short one is wanted.
Differs from the paper: wrong answers are left as they are, and a right one never falls as low as a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from supertiny.core.protocols import Reward
from supertiny.core.records import Example
from supertiny.training.practice import Sample
from supertiny.training.rewards._trusted import reward_of, right


@dataclass(frozen=True)
class Brevity:
    """reward - share * excess * lead, for right answers.

    excess is 0 for the shortest right answer of the group and 1 for one of twice its tokens or more; lead is how far
    the answer stands above 0 and above the best wrong answer of the group.
    """

    of: Any = field(default="exact", metadata={"family": "rewards"})
    """The reward that length takes from."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of its lead that an answer twice as long as needed loses."""

    @cached_property
    def _reward(self) -> Reward:
        return reward_of(self.of)

    def __call__(self, example: Example, samples: Sequence[Sample]) -> list[float]:
        given, hits = self._reward(example, samples), right(example, samples)
        shortest = min((len(sample.ids) for sample, hit in zip(samples, hits, strict=True) if hit), default=0)
        wrong = max((value for value, hit in zip(given, hits, strict=True) if not hit), default=0.0)
        floor = max(0.0, wrong)
        return [
            value - self._lost(len(sample.ids), shortest) * max(0.0, value - floor) if hit else value
            for sample, value, hit in zip(samples, given, hits, strict=True)
        ]

    def _lost(self, length: int, shortest: int) -> float:
        return self.share * min(1.0, max(0.0, length / max(1, shortest) - 1))
