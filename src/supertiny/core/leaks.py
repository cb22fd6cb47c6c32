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

from supertiny.core.records import Message, said

GRAM = 5
SIMILARITY = 0.9
_PERMUTATIONS = 64
_CANDIDATE_SLACK = 0.25  # MinHash only proposes pairs, from well below the threshold; the exact similarity decides


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
    return "\n".join(said(m) for m in messages if m.get("role") not in ("system", "developer"))


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
    leaks, rest = [], {}
    for place, text in asked.items():
        plain = normalised(text)
        if plain in places:
            leaks.append(Leak(place, places[plain], 1.0, text))
        else:
            rest[place] = plain
    near = _near(rest, places, similarity, asked) if similarity < 1 else []
    return leaks + sorted(near, key=lambda leak: (-leak.similarity, leak.left))


def _near(
    asked: Mapping[str, str], places: Mapping[str, str], similarity: float, texts: Mapping[str, str]
) -> list[Leak]:
    from datasketch import MinHashLSH  # slow to import, and needed here alone

    index = MinHashLSH(threshold=max(0.1, similarity - _CANDIDATE_SLACK), num_perm=_PERMUTATIONS)
    index_grams = {plain: grams(plain) for plain in places}
    for plain, sketch in zip(places, _sketches(index_grams.values()), strict=True):
        index.insert(plain, sketch, check_duplication=False)
    asked_grams = {place: grams(plain) for place, plain in asked.items()}
    leaks = []
    for (place, own), sketch in zip(asked_grams.items(), _sketches(asked_grams.values()), strict=True):
        found = ((jaccard(own, index_grams[plain]), plain) for plain in index.query(sketch))
        score, plain = max(found, default=(0.0, ""))
        if score >= similarity:
            leaks.append(Leak(place, places[plain], score, texts[place]))
    return leaks


def _sketches(sets: Iterable[frozenset[str]]) -> Iterable[object]:
    from datasketch import MinHash

    encoded = [[gram.encode() for gram in sorted(one)] for one in sets]
    sketches: Iterable[object] = MinHash.generator(encoded, num_perm=_PERMUTATIONS, seed=1)
    return sketches
