"""What the selectors share: clean probabilities, entropy, ranking by a score.

Paper: Yang et al., Improving Probability-based Prompt Selection Through Unified Evaluation and Analysis, 2023,
arXiv:2305.14877, whose formulas these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from supertiny.prototype.label_shares import Shares, calibrated, normalised


def clean(prompts: Sequence[Any], probabilities: Any, calibrate: bool = False) -> Shares:
    """(prompts, rows, labels) that sum to 1 over labels, calibrated by marginalisation where that is asked for.

    A row without any probability becomes uniform. Raises ValueError where the array does not belong to the prompts.
    """
    shares = np.asarray(probabilities, dtype=np.float64)
    if shares.ndim != 3 or len(shares) != len(prompts) or 0 in shares.shape[1:]:
        raise ValueError(f"{len(prompts)} prompts need (prompts, rows, labels) probabilities; found {shares.shape}")
    if not np.isfinite(shares).all() or (shares < 0).any():
        raise ValueError("probabilities must be finite and not negative")
    shares = normalised(shares)
    return calibrated(shares) if calibrate else shares


def entropy(shares: Shares) -> Shares:
    """In nats over the last axis; 0 log 0 is 0."""
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    found: Shares = -(shares * logs).sum(axis=-1)
    return found


def one_hot(shares: Shares) -> Shares:
    """All probability on the most probable label; equal ones share it, so that the labels' order does not matter."""
    return normalised((shares == shares.max(axis=-1, keepdims=True)).astype(np.float64))


def best_first(scores: Shares) -> list[int]:
    """Places in falling order of score; the earlier prompt wins ties. Rounding noise makes no difference."""
    return [int(place) for place in np.argsort(-np.round(scores, 12), kind="stable")]
