"""Prefers the prompt whose answers tell most about the request: sure on each row, and not the same on all.

Paper: Sorensen et al., An Information-theoretic Approach to Prompt Engineering, 2022, arXiv:2203.11364.
Use when: there are wordings to choose among and no labelled row to spare; the strongest of its family.
Differs from the paper: `hard` (MI_G) and `calibrate` (CBM) are those of arXiv:2305.14877.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from supertiny.prototype.selectors._probabilities import best_first, clean, entropy, one_hot


@dataclass(frozen=True)
class MutualInformation:
    """Entropy of the mean answer minus the mean entropy of an answer."""

    hard: bool = False
    """Whether the mean answer counts each row's most probable label alone (MI_G) instead of all probability."""
    calibrate: bool = False
    """Whether probabilities are first calibrated by marginalisation, which helps small models most."""

    def rank(self, prompts: Sequence[Any], probabilities: Any) -> list[int]:
        shares = clean(prompts, probabilities, self.calibrate)
        mean = (one_hot(shares) if self.hard else shares).mean(axis=1)
        return best_first(entropy(mean) - entropy(shares).mean(axis=1))
