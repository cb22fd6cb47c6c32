"""Probabilities of functions as the beginning of an answer, calibrated by marginalisation.

Paper: Yang et al., Improving Probability-based Prompt Selection Through Unified Evaluation and Analysis, 2023,
arXiv:2305.14877.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from supertiny.core.protocols import Format
from supertiny.core.records import Answer, Call
from supertiny.prototype.bench import Shelf

Shares = NDArray[np.float64]
_LEAST_REQUESTS = 8  # before which a mean over requests says nothing


def label_text(form: Format, name: str) -> str:
    """What an answer with this function begins with, up to the end of its name; "" is an answer without a call."""
    if not name:
        return form.write(Answer())
    written = form.write(Answer((Call(name),)))
    place = written.find(name)
    if place < 0:
        return written
    end = place + len(name)
    return written[: end + 1] if written[end : end + 1] == '"' else written[:end]


def label_shares(scores: Sequence[tuple[float, int]], mean: bool) -> Shares:
    """(labels,) probabilities that sum to 1, from (sum of log-probabilities, tokens) of each label."""
    logs = np.array([total / max(1, tokens) if mean else total for total, tokens in scores], dtype=np.float64)
    shares = np.exp(logs - logs.max())
    normalised: Shares = shares / shares.sum()
    return normalised


class Marginals:
    """Mean probability of each label over the requests seen so far, by the labels that they had to choose from."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Shares] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    @classmethod
    def of(cls, shelf: Shelf, key: str) -> Marginals:
        found: Marginals = shelf.once(f"marginals {key}", cls)
        return found

    def see(self, labels: tuple[str, ...], shares: Shares) -> None:
        self._sums[labels] = self._sums.get(labels, np.zeros(len(labels))) + shares
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def calibrated(self, labels: tuple[str, ...], shares: Shares) -> Shares:
        """p / mean p, summing to 1; as they are where too few requests with these labels were seen."""
        if self._counts.get(labels, 0) < _LEAST_REQUESTS:
            return shares
        mean = self._sums[labels] / self._counts[labels]
        lifted = np.divide(shares, mean, out=np.zeros_like(shares), where=mean > 0)
        normalised: Shares = lifted / lifted.sum()
        return normalised
