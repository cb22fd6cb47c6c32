"""Which rows are most like a query, and not like each other; latent topics of TF-IDF vectors."""

from __future__ import annotations

from collections.abc import Callable
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


def latent(texts: Any, dimensions: int, seed: int) -> Callable[[Any], Vectors]:
    """A function from TF-IDF vectors to topics (count, d) of length 1, as found in the vectors of `texts`.

    Paper: Deerwester et al., Indexing by Latent Semantic Analysis, 1990.
    """
    from sklearn.decomposition import TruncatedSVD

    least = min(texts.shape) - 1
    if least < 2:  # of so few texts there are no topics
        return _dense
    topics = TruncatedSVD(min(dimensions, least), random_state=seed).fit(texts)
    return lambda vectors: unit(topics.transform(vectors))


def unit(vectors: Any) -> Vectors:
    """The same vectors at length 1; a zero stays zero."""
    dense = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(dense, axis=1, keepdims=True)
    scaled: Vectors = np.divide(dense, length, out=np.zeros_like(dense), where=length > 0)
    return scaled


def _dense(matrix: Any) -> Vectors:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float32)
