"""Which known examples read most like a text: TF-IDF over words and pieces of words, without a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped, unused-ignore]

from supertiny.core.records import Example

_WORD = re.compile(r"\w+|[^\w\s]")
_PIECE_CHARACTERS = (2, 3, 4)
_BLOCK = 512  # texts that are compared at once, so that memory stays small


class NearestExamples:
    """An index over the last user message of each example, in any script; the order of examples breaks ties."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = tuple(examples)
        self._vectorizer = TfidfVectorizer(analyzer=_features, sublinear_tf=True, dtype=np.float32)
        texts = [example.request.text for example in self.examples]
        self._matrix = self._vectorizer.fit_transform(texts) if texts else None

    def nearest(self, texts: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
        """Per text up to `k` pairs (index of an example, cosine similarity 0..1), the most similar first."""
        if self._matrix is None or k < 1:
            return [[] for _ in texts]
        found: list[list[tuple[int, float]]] = []
        for start in range(0, len(texts), _BLOCK):
            queries = self._vectorizer.transform(texts[start : start + _BLOCK])
            similarities = np.clip((queries @ self._matrix.T).toarray(), 0.0, 1.0)
            order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
            found += [[(int(i), float(row[i])) for i in best] for row, best in zip(similarities, order, strict=True)]
        return found

    def vectors(self, texts: Sequence[str] | None = None) -> Any:
        """(texts, features) sparse rows of length 1; those of the examples, in order, where no texts are given.

        None where there are no examples.
        """
        if texts is None or self._matrix is None:
            return self._matrix
        return self._vectorizer.transform(texts)


def _features(text: str) -> Iterator[str]:
    """Words, pairs of words, and pieces of words; the whole text too, so that no text is without a feature."""
    words = _WORD.findall(text.casefold())
    yield "text " + " ".join(words)
    yield from words
    yield from (f"{left} {right}" for left, right in pairwise(words))
    for word in words:
        padded = f"<{word}>"
        for size in _PIECE_CHARACTERS:
            yield from (f"#{padded[i : i + size]}" for i in range(len(padded) - size + 1))
