"""Prefers the prompt under which the model is surest: the lowest mean entropy of an answer.

Paper: Wu et al., Self-Adaptive In-Context Learning, 2022, arXiv:2212.10375.
Use when: the prompts differ in their examples, and none of them answers the same label always.
Differs from the paper: one prompt is taken for all rows (MDL_M of arXiv:2305.14877), not another for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from supertiny.prototype.selectors._probabilities import best_first, clean, entropy


@dataclass(frozen=True)
class MinimumDescriptionLength:
    """Minus the mean entropy over rows."""

    calibrate: bool = False
    """Whether probabilities are first calibrated by marginalisation."""

    def rank(self, prompts: Sequence[Any], probabilities: Any) -> list[int]:
        return best_first(-entropy(clean(prompts, probabilities, self.calibrate)).mean(axis=1))
