"""Prefers the prompt whose most probable labels are spread most evenly over the rows.

Paper: Lu et al., Fantastically Ordered Prompts and Where to Find Them, 2021, arXiv:2104.08786.
Use when: a prompt may be caught in answering one label, and the labels are about equally frequent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from supertiny.prototype.selectors._probabilities import best_first, clean, entropy, one_hot


@dataclass(frozen=True)
class GlobalEntropy:
    """Entropy of the distribution of predicted labels."""

    calibrate: bool = False
    """Whether probabilities are first calibrated by marginalisation."""

    def rank(self, prompts: Sequence[Any], probabilities: Any) -> list[int]:
        shares = clean(prompts, probabilities, self.calibrate)
        return best_first(entropy(one_hot(shares).mean(axis=1)))
