"""Which rows are most like a query, and not like each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
_POOL = 5  # times as many candidates as are wanted, among which diversity chooses
_LEAST = 40


def ranked(queries: Any, rows: Any, k: int, diversity: float) -> list[list[int]]:
    """Per query the places of up to `k` rows, by maximal marginal relevance; the order of rows breaks ties.

    Both are (count, d) with rows of length 1, sparse or dense. With diversity 0 these are the nearest.
    """
    similarities = _dense(queries @ rows.T)
    order = np.argsort(-similarities, axis=1, kind="stable")
    if diversity == 0:
        return [[int(place) for place in row[:k]] for row in order]
    return [
        _diverse(near, row[: max(_LEAST, _POOL * k)], rows, k, diversity)
        for near, row in zip(similarities, order, strict=True)
    ]


def _diverse(near: Vectors, pool: Any, rows: Any, k: int, diversity: float) -> list[int]:
    between = _dense(rows[pool] @ rows[pool].T)
    like_chosen = np.zeros(len(pool), dtype=np.float32)
    free = np.ones(len(pool), dtype=bool)
    chosen: list[int] = []
    for _ in range(min(k, len(pool))):
        worth = np.where(free, (1 - diversity) * near[pool] - diversity * like_chosen, -np.inf)
        best = int(np.argmax(worth))
        chosen.append(int(pool[best]))
        free[best] = False
        like_chosen = np.maximum(like_chosen, between[best])
    return chosen


def _dense(matrix: Any) -> Vectors:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float32)
