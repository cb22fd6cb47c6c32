"""1 for exactly the trusted calls in any order, 0 for other answers, -1 for what nobody can read.

Paper: Shao et al., DeepSeekMath (GRPO), 2024, arXiv:2402.03300.
Use when: the pupil is right now and then, so that groups have signal; nothing but being right can raise it.
Differs from the paper: what cannot be read is told apart from what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supertiny.core.records import Example
from supertiny.training.practice import Sample
from supertiny.training.rewards._trusted import right


@dataclass(frozen=True)
class Exact:
    """Functions, arguments and values all as in the trusted answer, each call as often."""

    def __call__(self, example: Example, samples: Sequence[Sample]) -> list[float]:
        hits = right(example, samples)
        return [1.0 if hit else 0.0 if sample.readable else -1.0 for hit, sample in zip(hits, samples, strict=True)]
