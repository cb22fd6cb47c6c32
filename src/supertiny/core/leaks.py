"""The leak guard: no row of `valid` or `test` may stand in what the teacher or the student learns from.

Two texts are the same where they differ in case, punctuation and spaces alone, and near-duplicates where the Jaccard
similarity of their character 5-grams reaches a threshold. 0.9 means that about one character 5-gram in twenty differs
on each side: a typing slip in a long sentence. Commands that differ in a device, a room or a number lie
below it ("turn on the kitchen light" and "turn on the bedroom light" have 0.31), so that they may stand on both sides.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supertiny.core.records import Message, said

if TYPE_CHECKING:
    from datasketch import MinHash

GRAM = 5
SIMILARITY = 0.9
SYSTEM_ROLES = ("system", "developer")
"""Who speaks for the one who runs the system; the second is OpenAI's newer word."""
_PERMUTATIONS = 64
_SLACK = 0.25  # MinHash only proposes pairs, from well below the threshold; the exact similarity decides


@dataclass(frozen=True)
class Leak:
    """Two rows in splits that must not share any. `similarity` is 1 for the same text."""

    left: str
    """Place of the row that is asked: file:line."""
    right: str
    """Place of the row that is learned from, or that stands in the other asked split."""
    similarity: float
    text: str

    def __str__(self) -> str:
        said = "says the same as" if self.similarity == 1 else f"is nearly the same ({self.similarity:.2f}) as"
        return f"{self.left} {said} {self.right}: {self.text[:80]!r}"


def asked_text(messages: Sequence[Message]) -> str:
    """What is compared of a request: all that was said, without the system's words."""
    return "\n".join(said(m) for m in messages if m.get("role") not in SYSTEM_ROLES)


def normalised(text: str) -> str:
    """Case, punctuation and runs of spaces taken out, in every script; the text itself where nothing else is left."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(" " if unicodedata.category(letter).startswith("P") else letter for letter in folded)
    return " ".join(plain.split()) or folded.strip()


def grams(text: str) -> frozenset[str]:
    """Character 5-grams of a normalised text; a shorter text is one gram."""
    return frozenset(text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1)))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    return len(left & right) / len(left | right) if left or right else 1.0


def find_leaks(asked: Mapping[str, str], learned: Mapping[str, str], similarity: float = SIMILARITY) -> list[Leak]:
    """Leaks from `learned` into `asked`, each a mapping from place to text; the same ones first, then the nearest."""
    places: dict[str, str] = {}
    for place, text in learned.items():
        places.setdefault(normalised(text), place)
    index = NearTexts(similarity, places) if similarity < 1 else None
    leaks, near = [], []
    for place, text in asked.items():
        plain = normalised(text)
        if plain in places:
            leaks.append(Leak(place, places[plain], 1.0, text))
        elif index is not None and (found := index.near(plain)):
            near.append(Leak(place, places[found[0][1]], found[0][0], text))
    return leaks + sorted(near, key=lambda leak: (-leak.similarity, leak.left))


class NearTexts:
    """A growing index of normalised texts by the Jaccard similarity of their character 5-grams."""

    def __init__(self, similarity: float, texts: Iterable[str] = ()) -> None:
        from datasketch import MinHash, MinHashLSH  # slow to import, and needed here alone

        self.similarity = similarity
        self._index = MinHashLSH(threshold=max(0.1, similarity - _SLACK), num_perm=_PERMUTATIONS)
        self._empty = MinHash(num_perm=_PERMUTATIONS, seed=1)
        self._grams: dict[str, frozenset[str]] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        if text not in self._grams:
            self._grams[text] = grams(text)
            self._index.insert(text, self._sketch(self._grams[text]), check_duplication=False)

    def near(self, text: str) -> list[tuple[float, str]]:
        """(similarity, text) of all that are near, the nearest first; the same text has 1."""
        own = grams(text)
        found = ((jaccard(own, self._grams[other]), other) for other in self._index.query(self._sketch(own)))
        return sorted((pair for pair in found if pair[0] >= self.similarity), reverse=True)

    def _sketch(self, own: frozenset[str]) -> MinHash:
        sketch = self._empty.copy()
        sketch.update_batch([gram.encode() for gram in sorted(own)])
        return sketch
