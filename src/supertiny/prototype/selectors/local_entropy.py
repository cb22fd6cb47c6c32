"""Prefers the prompt under which the model is least overconfident: the highest mean entropy of an answer.

Paper: Lu et al., Fantastically Ordered Prompts and Where to Find Them, 2021, arXiv:2104.08786.
Use when: prompts make the model sure of one label whatever is asked; else it prefers prompts that say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from supertiny.prototype.selectors._probabilities import best_first, clean, entropy


@dataclass(frozen=True)
class LocalEntropy:
    """Mean entropy over rows."""

    calibrate: bool = False
    """Whether probabilities are first calibrated by marginalisation."""

    def rank(self, prompts: Sequence[Any], probabilities: Any) -> list[int]:
        return best_first(entropy(clean(prompts, probabilities, self.calibrate)).mean(axis=1))
