"""A sequence tagger of a request's words, which also looks at where others saw the arguments.

Paper: McCallum, Freitag and Pereira, Maximum Entropy Markov Models for Information Extraction and Segmentation, 2000.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction import DictVectorizer  # type: ignore[import-untyped, unused-ignore]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped, unused-ignore]

from supertiny.prototype.steps._reader import Reader, Rows, beside, scaled
from supertiny.prototype.steps._spans import OUT, Word, arguments_of, spans_of, tags_of, words_of

_BEAM = 8
_STATES_LENGTH = 5.0  # a word has some forty other traits, each 0 or 1
_COPIED_SHARE = 0.9  # of an argument's values that must stand in their texts


@dataclass(frozen=True)
class Lesson:
    """A text with one call, and what each of several others took for its arguments."""

    text: str
    tool: str
    arguments: Mapping[str, Any]
    hints: Sequence[Mapping[str, Any]]


class Tagger:
    """Logistic regression over a word, its neighbours, the tag before and the hints' tags; the best path by beam.

    It learns for which words and arguments to trust which hint; lessons and requests have equally many. With a reader
    it sees the states of the words, too.
    """

    def __init__(self, lessons: Sequence[Lesson], reader: Reader | None = None) -> None:
        self._reader = reader
        self._bring: Callable[[Rows], Rows] | None = None
        self.copied = _copied(lessons)
        """By function, the arguments whose values stand in the text."""
        self._tags: dict[str, set[str]] = {tool: {OUT} for tool in self.copied}
        traits, tags = [], []
        for lesson in lessons if any(self.copied.values()) else ():
            words = words_of(lesson.text)
            own = self._tagged(words, lesson.text, lesson.tool, lesson.arguments)
            hinted = [self._tagged(words, lesson.text, lesson.tool, hint) for hint in lesson.hints]
            for place, tag in enumerate(own):
                traits.append(_traits(words, place, lesson.tool, own[place - 1] if place else "", hinted))
                tags.append(tag)
                self._tags[lesson.tool] |= {tag} if tag == OUT else {"B-" + tag[2:], "I-" + tag[2:]}
        self._vectorizer = DictVectorizer(dtype=np.float32)
        matrix = self._vectorizer.fit_transform(traits) if traits else None
        if reader is not None and traits:
            states = np.concatenate(reader([lesson.text for lesson in lessons]))
            self._bring = scaled(states, _STATES_LENGTH)
            matrix = beside(matrix, self._bring(states))
        # Where nothing is ever stated in a text, there is nothing to tell apart.
        several = len(set(tags)) > 1
        self._model = LogisticRegression(C=10.0, max_iter=400).fit(matrix, tags) if several else None

    def knows(self, tool: str) -> bool:
        return self._model is not None and bool(self.copied.get(tool))

    def __call__(self, text: str, tool: str, hints: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], float]:
        """(arguments of a known function, natural-log probability of the tags)."""
        assert self._model is not None
        words, allowed = words_of(text), self._tags[tool]
        classes = [(number, str(tag)) for number, tag in enumerate(self._model.classes_) if tag in allowed]
        hinted = [self._tagged(words, text, tool, hint) for hint in hints]
        states = self._bring(self._reader([text])[0]) if self._reader and self._bring and words else None
        beam: list[tuple[float, tuple[str, ...]]] = [(0.0, ())]
        for place in range(len(words)):
            traits = [_traits(words, place, tool, tags[-1] if tags else "", hinted) for _, tags in beam]
            matrix = self._vectorizer.transform(traits)
            if states is not None:
                matrix = beside(matrix, np.repeat(states[place : place + 1], len(beam), axis=0))
            scores = self._model.predict_log_proba(matrix)
            grown = [
                (score + float(row[number]), (*tags, tag))
                for (score, tags), row in zip(beam, scores, strict=True)
                for number, tag in classes
                if _may_follow(tag, tags)
            ]
            beam = sorted(grown, key=lambda path: -path[0])[:_BEAM]
        score, tags = beam[0]
        return arguments_of(words, text, tags), score

    def _tagged(self, words: Sequence[Word], text: str, tool: str, arguments: Mapping[str, Any]) -> list[str]:
        copied = self.copied.get(tool, frozenset())
        return tags_of(words, text, {name: value for name, value in arguments.items() if name in copied})


def _copied(lessons: Sequence[Lesson]) -> dict[str, frozenset[str]]:
    given: Counter[tuple[str, str]] = Counter()
    found: Counter[tuple[str, str]] = Counter()
    for lesson in lessons:
        given.update((lesson.tool, name) for name in lesson.arguments)
        found.update((lesson.tool, name) for _, _, name in spans_of(lesson.text, lesson.arguments))
    tools = {lesson.tool for lesson in lessons}
    kept = {pair for pair in given if found[pair] >= _COPIED_SHARE * given[pair]}
    return {tool: frozenset(name for own, name in kept if own == tool) for tool in tools}


def _may_follow(tag: str, tags: Sequence[str]) -> bool:
    """A value goes on only where it has begun, and every argument has one value."""
    if tag == OUT:
        return True
    if tag[0] == "I":
        return bool(tags) and tags[-1] in ("B-" + tag[2:], tag)
    return tag not in tags


def _traits(
    words: Sequence[Word], place: int, tool: str, before: str, hinted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """What a word is told by: `local` by function, `general` for all functions together."""

    def word(offset: int) -> str:
        at = place + offset
        return words[at][0].lower() if 0 <= at < len(words) else ("<" if at < 0 else ">")

    own = words[place][0]
    capitals = f"{own[:1].isupper()}{place > 0 and words[place - 1][0][:1].isupper()}"
    near = [*(f"w{offset}={word(offset)}" for offset in (-2, -1, 0, 1, 2)), f"shape={_shape(own)}"]
    near.append(f"last={word(0)[-3:]}")
    local = [
        *near, f"left={word(-1)} {word(0)}", f"right={word(0)} {word(1)}", f"first={word(0)[:3]}",
        f"next={word(1)[-3:]}", f"digit={own.isdigit()}|{word(-1)}", f"capital={capitals}|{before}",
        f"before={before}", f"before={before}|{word(0)}", f"before={before}|{word(-1)}", "always",
    ]  # fmt: skip
    general = [*near, f"edge={place == 0}{place == len(words) - 1}"]
    for number, tags in enumerate(hinted):
        hint, after = tags[place], tags[place + 1] if place + 1 < len(tags) else ""
        name = f"hint{number}={hint}"
        general += [name, f"{name}|{before}", f"{name}|{after}", f"hint{number}={hint[:1]}{before[:1]}"]
        local += [name, f"{name}|{word(0)}", f"{name}|{_shape(own)}", f"{name}|{word(-1)}"]
    if len(hinted) > 1:
        general.append("hints=" + "|".join(tags[place] for tags in hinted))
    return {**{f"{tool} {trait}": 1.0 for trait in local}, **dict.fromkeys(general, 1.0)}


def _shape(word: str) -> str:
    for pattern, sign in ((r"[^\W\d_A-Z]+", "x"), (r"[A-Z]+", "X"), (r"\d+", "9")):
        word = re.sub(pattern, sign, word)
    return word
