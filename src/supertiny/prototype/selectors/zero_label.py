"""Prefers the prompt that agrees most often with all prompts taken together.

Paper: Liao et al., Zero-Label Prompt Selection, 2022, arXiv:2211.04668.
Use when: most of the prompts are good, so that what they agree on is a fair guess at the right label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from supertiny.prototype.selectors._probabilities import best_first, clean, one_hot


@dataclass(frozen=True)
class ZeroLabel:
    """Share of rows on which a prompt's label is the ensemble's; equally probable labels count in part."""

    ensemble: Literal["log_mean", "mean", "votes"] = "log_mean"
    """How the prompts' answers become one: mean log-probability (ZLP), mean probability (ZPM), majority (ZMV)."""
    calibrate: bool = False
    """Whether probabilities are first calibrated by marginalisation."""

    def rank(self, prompts: Sequence[Any], probabilities: Any) -> list[int]:
        shares = clean(prompts, probabilities, self.calibrate)
        own = one_hot(shares)
        seen = {"log_mean": np.log(np.maximum(shares, 1e-12)), "mean": shares, "votes": own}[self.ensemble]
        together = np.round(seen.mean(axis=0), 9)
        return best_first((own * one_hot(together)).sum(axis=-1).mean(axis=1))
