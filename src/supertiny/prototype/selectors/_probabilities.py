"""What the selectors share: clean probabilities, calibration by marginalisation, entropy, ranking by a score.

Paper: Yang et al., Improving Probability-based Prompt Selection Through Unified Evaluation and Analysis, 2023,
arXiv:2305.14877, whose formulas these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.float64]


def clean(prompts: Sequence[Any], probabilities: Any, calibrate: bool = False) -> Shares:
    """(prompts, rows, labels) that sum to 1 over labels; a row without any probability becomes uniform.

    `calibrate` divides by each label's mean over the rows first, which takes away what a prompt prefers whatever is
    asked. Raises ValueError where the array does not belong to the prompts.
    """
    shares = np.asarray(probabilities, dtype=np.float64)
    if shares.ndim != 3 or len(shares) != len(prompts) or 0 in shares.shape[1:]:
        raise ValueError(f"{len(prompts)} prompts need (prompts, rows, labels) probabilities; found {shares.shape}")
    if not np.isfinite(shares).all() or (shares < 0).any():
        raise ValueError("probabilities must be finite and not negative")
    shares = _normalised(shares)
    if calibrate:
        mean = shares.mean(axis=1, keepdims=True)
        shares = _normalised(np.divide(shares, mean, out=np.zeros_like(shares), where=mean > 0))
    return shares


def entropy(shares: Shares) -> Shares:
    """In nats over the last axis; 0 log 0 is 0."""
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    found: Shares = -(shares * logs).sum(axis=-1)
    return found


def one_hot(shares: Shares) -> Shares:
    """All probability on the most probable label; equal ones share it, so that the labels' order does not matter."""
    return _normalised((shares == shares.max(axis=-1, keepdims=True)).astype(np.float64))


def best_first(scores: Shares) -> list[int]:
    """Places in falling order of score; the earlier prompt wins ties. Rounding noise makes no difference."""
    return [int(place) for place in np.argsort(-np.round(scores, 12), kind="stable")]


def _normalised(shares: Shares) -> Shares:
    total = shares.sum(axis=-1, keepdims=True)
    even = np.full_like(shares, 1.0 / shares.shape[-1])
    normalised: Shares = np.divide(shares, total, out=even, where=total > 0)
    return normalised
