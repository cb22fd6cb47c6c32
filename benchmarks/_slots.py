"""Arguments as places in a text: written into it, read back from it, and tagged word by word.

Where every value is copied from the request, `play [best](sort) [Becca](artist)` says as much as a JSON object, keeps
the order of the words, and can be checked: without its marks it must be the request itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from supertiny.core.nearest import _features as text_features

WORD = re.compile(r"\w+|[^\w\s]")
_MARK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]+)\)")
_OUT = "O"
_BEAM = 8

Span = tuple[int, int, str]  # start, end, slot
Lesson = tuple[str, str, Mapping[str, Any], Sequence[Mapping[str, Any]]]  # text, function, arguments, hints


def spans_of(text: str, arguments: Mapping[str, Any]) -> list[Span]:
    """Where the text states each argument, in the order of the text; what it does not state is left out."""
    spans: list[Span] = []
    at = 0
    for slot, value in arguments.items():
        place = _find(text, str(value), at, spans)
        if place is not None:
            spans.append((place, place + len(str(value)), slot))
            at = place + len(str(value))
    return sorted(spans)


def _find(text: str, value: str, at: int, taken: Sequence[Span]) -> int | None:
    """After the value before, or anywhere that is free, as whole words."""
    if not value.strip():
        return None
    found = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE)]
    free = [place for place in found if all(place >= end or place + len(value) <= start for start, end, _ in taken)]
    return next((place for place in free if place >= at), free[0] if free else None)


def marked(text: str, arguments: Mapping[str, Any]) -> str:
    """The text with every value marked: `rate this [book](object_type)`."""
    written, at = [], 0
    for start, end, slot in spans_of(text, arguments):
        written.append(f"{text[at:start]}[{text[start:end]}]({slot})")
        at = end
    return "".join(written) + text[at:]


def read_marked(text: str, written: str, slots: Iterable[str]) -> dict[str, str] | None:
    """Arguments of a marked text, in the request's own letters; None where it says something else than the request.

    Marks with slots that are not in `slots`, and a slot's second mark, are left out.
    """
    known, found = set(slots), {}
    plain, position, at = "", 0, 0
    places: list[tuple[int, int, str]] = []
    for match in _MARK.finditer(written):
        plain += written[at : match.start()]
        position = len(plain)
        plain += match.group(1)
        places.append((position, len(plain), match.group(2)))
        at = match.end()
    plain += written[at:]
    squeezed, source = _squeezed(plain), _squeezed(text)
    if [letter for letter, _ in squeezed] != [letter for letter, _ in source]:
        return None
    own = {place: number for number, (_, place) in enumerate(squeezed)}
    for start, end, slot in places:
        inside = [own[place] for place in range(start, end) if place in own]
        if inside and slot in known and slot not in found:
            found[slot] = text[source[inside[0]][1] : source[inside[-1]][1] + 1]
    return found


def _squeezed(text: str) -> list[tuple[str, int]]:
    """Letters without case and blanks, each with its place."""
    return [(letter.lower(), place) for place, letter in enumerate(text) if not letter.isspace()]


def listed(text: str, arguments: Mapping[str, Any]) -> str:
    """`slot: value` pairs in the order of the text."""
    return "; ".join(f"{slot}: {text[start:end]}" for start, end, slot in spans_of(text, arguments)) or "-"


def read_listed(text: str, written: str, slots: Iterable[str]) -> dict[str, str] | None:
    """Arguments of a list in the request's own letters; None where a value is not in the request."""
    known: set[str] = set(slots)
    given: dict[str, str] = {}
    for part in written.split(";"):
        slot, colon, value = part.strip().partition(":")
        if colon and slot in known and value.strip():
            given.setdefault(slot, value.strip())
    spans = spans_of(text, given)
    return {slot: text[start:end] for start, end, slot in spans} if len(spans) == len(given) else None


STYLES = {"marked": (marked, read_marked), "listed": (listed, read_listed)}


class FunctionGuess:
    """Which function a text asks for: logistic regression over TF-IDF of words and pieces of words."""

    def __init__(self, texts: Sequence[str], names: Sequence[str], weight: float = 30.0) -> None:
        self._vectorizer = TfidfVectorizer(analyzer=text_features, sublinear_tf=True)
        self._model = LogisticRegression(C=weight, max_iter=1000).fit(self._vectorizer.fit_transform(texts), names)
        self.names = [str(name) for name in self._model.classes_]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, names) probabilities."""
        return np.asarray(self._model.predict_proba(self._vectorizer.transform(texts)))


class SlotTagger:
    """Marks a text word by word: logistic regression over a word, its neighbours and the mark before, searched by beam.

    Learns from lessons of (text, function, arguments, hints), where hints are what others, ways of asking a language
    model, took for the arguments; it then learns for which words and slots to trust which of them. All lessons and
    requests have equally many hints, or none.
    """

    def __init__(self, lessons: Sequence[Lesson], weight: float = 10.0) -> None:
        traits, tags = [], []
        self._tags: dict[str, set[str]] = {}
        for text, tool, arguments, hints in lessons:
            words = words_of(text)
            own, hinted = tags_of(words, text, arguments), [tags_of(words, text, hint) for hint in hints]
            known = self._tags.setdefault(tool, {_OUT})
            for place, tag in enumerate(own):
                traits.append(_traits(words, place, tool, own[place - 1] if place else "", hinted))
                tags.append(tag)
                known |= {tag} if tag == _OUT else {"B-" + tag[2:], "I-" + tag[2:]}
        self._vectorizer = DictVectorizer(dtype=np.float32)
        self._model = LogisticRegression(C=weight, max_iter=400).fit(self._vectorizer.fit_transform(traits), tags)
        self._classes = [str(tag) for tag in self._model.classes_]

    def __call__(self, text: str, tool: str, hints: Sequence[Mapping[str, Any]] = ()) -> tuple[dict[str, str], float]:
        """(arguments, natural-log probability of the tags)."""
        words = words_of(text)
        allowed = self._tags.get(tool, {_OUT})
        hinted = [tags_of(words, text, hint) for hint in hints]
        beam: list[tuple[float, tuple[str, ...]]] = [(0.0, ())]
        for place in range(len(words)):
            before = [tags[-1] if tags else "" for _, tags in beam]
            traits = self._vectorizer.transform([_traits(words, place, tool, last, hinted) for last in before])
            grown = [
                (score + float(row[number]), (*tags, tag))
                for (score, tags), row in zip(beam, self._model.predict_log_proba(traits), strict=True)
                for number, tag in enumerate(self._classes)
                if tag in allowed and _may_follow(tag, tags)
            ]
            beam = sorted(grown, key=lambda path: -path[0])[:_BEAM]
        score, tags = beam[0]
        return arguments_of(words, text, tags), score


def words_of(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end) of every word and punctuation mark."""
    return [(match.group(), match.start(), match.end()) for match in WORD.finditer(text)]


def tags_of(words: Sequence[tuple[str, int, int]], text: str, arguments: Mapping[str, Any]) -> list[str]:
    """B-SLOT at a value's first word, I-SLOT at its others, O elsewhere."""
    tags = [_OUT] * len(words)
    for start, end, slot in spans_of(text, arguments):
        inside = [place for place, (_, first, last) in enumerate(words) if first >= start and last <= end]
        for number, place in enumerate(inside):
            tags[place] = f"{'I' if number else 'B'}-{slot}"
    return tags


def arguments_of(words: Sequence[tuple[str, int, int]], text: str, tags: Sequence[str]) -> dict[str, str]:
    """Inverse of `tags_of`."""
    places: dict[str, tuple[int, int]] = {}
    for (_, start, end), tag in zip(words, tags, strict=True):
        if tag != _OUT:
            places[tag[2:]] = (places[tag[2:]][0] if tag[0] == "I" else start, end)
    return {slot: text[start:end] for slot, (start, end) in places.items()}


def _may_follow(tag: str, tags: Sequence[str]) -> bool:
    """A value goes on only where it has begun, and every slot has one value."""
    if tag == _OUT:
        return True
    if tag[0] == "I":
        return bool(tags) and tags[-1] in ("B-" + tag[2:], tag)
    return tag not in tags


def _traits(
    words: Sequence[tuple[str, int, int]], place: int, tool: str, before: str, hinted: Sequence[Sequence[str]]
) -> dict[str, float]:
    def word(offset: int) -> str:
        at = place + offset
        return words[at][0].lower() if 0 <= at < len(words) else ("<" if at < 0 else ">")

    own = words[place][0]
    capitals = f"{own[:1].isupper()}{place > 0 and words[place - 1][0][:1].isupper()}"
    local = [
        *(f"w{offset}={word(offset)}" for offset in (-2, -1, 0, 1, 2)),
        f"left={word(-1)} {word(0)}", f"right={word(0)} {word(1)}", f"shape={_shape(own)}",
        f"last={word(0)[-3:]}", f"first={word(0)[:3]}", f"next={word(1)[-3:]}",
        f"digit={own.isdigit()}|{word(-1)}", f"capital={capitals}|{before}",
        f"before={before}", f"before={before}|{word(0)}", f"before={before}|{word(-1)}", "always",
    ]  # fmt: skip
    general = [
        *local[:5],
        f"shape={_shape(own)}",
        f"last={word(0)[-3:]}",
        f"edge={place == 0}{place == len(words) - 1}",
    ]
    for number, tags in enumerate(hinted):
        hint, after = tags[place], tags[place + 1] if place + 1 < len(tags) else ""
        name = f"hint{number}={hint}"
        general += [name, f"{name}|{before}", f"{name}|{after}", f"hint{number}={hint[:1]}{before[:1]}"]
        local += [name, f"{name}|{word(0)}", f"{name}|{_shape(own)}", f"{name}|{word(-1)}"]
    if len(hinted) > 1:
        both = "|".join(tags[place] for tags in hinted)
        general += [f"hints={both}", f"agree={len({tags[place] for tags in hinted}) == 1}"]
    return {**{f"{tool} {trait}": 1.0 for trait in local}, **dict.fromkeys(general, 1.0)}


def _shape(word: str) -> str:
    for pattern, sign in ((r"[^\W\d_A-Z]+", "x"), (r"[A-Z]+", "X"), (r"\d+", "9")):
        word = re.sub(pattern, sign, word)
    return word
