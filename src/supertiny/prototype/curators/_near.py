"""Texts that say nearly the same: a growing index of requests, by the measure of the task's own leak guard."""

from __future__ import annotations

from collections.abc import Iterable

from datasketch import MinHash, MinHashLSH

from supertiny.core.leaks import grams, jaccard, normalised

_PERMUTATIONS = 64
_SLACK = 0.25  # MinHash proposes, from well below the threshold; the exact similarity decides


class NearTexts:
    """Jaccard similarity of character 5-grams of normalised texts, every script alike."""

    def __init__(self, similarity: float, texts: Iterable[str] = ()) -> None:
        self.similarity = similarity
        self._index = MinHashLSH(threshold=max(0.1, similarity - _SLACK), num_perm=_PERMUTATIONS)
        self._grams: dict[str, frozenset[str]] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        plain = normalised(text)
        if plain not in self._grams:
            self._grams[plain] = grams(plain)
            self._index.insert(plain, _sketch(self._grams[plain]))

    def near(self, text: str) -> str | None:
        """The most similar known text, normalised, or None where none is near; the same text is always near."""
        plain = normalised(text)
        if plain in self._grams:
            return plain
        own = grams(plain)
        found = [(jaccard(own, self._grams[other]), other) for other in self._index.query(_sketch(own))]
        score, other = max(found, default=(0.0, ""))
        return other if found and score >= self.similarity else None


def _sketch(own: frozenset[str]) -> MinHash:
    sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.update_batch([gram.encode() for gram in sorted(own)])
    return sketch
