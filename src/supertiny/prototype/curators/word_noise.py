"""Makes new rows by leaving out small words and turning the request's parts round: other phrasings of the same call.

Paper: Wei and Zou, EDA, 2019, arXiv:1901.11196 (random deletion and swap).
Use when: users phrase one wish in more ways than the rows do; the student then leans less on word order.
Differs from the paper: only words that stand with most functions are left out, values stay whole, the verifier judges.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from supertiny.core.leaks import normalised
from supertiny.core.records import Example
from supertiny.core.task import Task
from supertiny.prototype.curators._rewriting import rewritten, stated, texts_not_to_make

_NO_CALL = ""


@dataclass(frozen=True)
class WordNoise:
    """A word is small where it says little about the function: it stands with many of them."""

    copies: Annotated[int, Field(ge=0)] = 1
    """New rows tried for each row."""
    drop_share: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Chance that a small word is left out."""
    turn_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Chance that the part from a small word on moves to the front."""
    small_share: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Share of the functions that a small word stands with."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        generator = random.Random(seed)
        small = _small_words(examples, self.small_share)
        known, made = texts_not_to_make(examples, task), list(examples)
        for example in examples:
            for copy in range(self.copies):
                text = self._noisy(example, small, generator)
                calls = example.answer.calls if example.answer else ()
                new = rewritten(example, text, calls, task, "word_noise", copy)
                if new is not None and normalised(text) and normalised(text) not in known:
                    known.add(normalised(text))
                    made.append(new)
        return made

    def _noisy(self, example: Example, small: Set[str], generator: random.Random) -> str:
        pieces = _pieces(example)
        turns = [place for place, piece in enumerate(pieces) if place and piece.casefold() in small]
        if turns and generator.random() < self.turn_share:
            cut = generator.choice(turns)
            pieces = [*pieces[cut:], *pieces[:cut]]
        return " ".join(p for p in pieces if p.casefold() not in small or generator.random() >= self.drop_share)


def _pieces(example: Example) -> list[str]:
    """The request's words; a stated value is one piece, so that it stays whole."""
    text = example.request.text
    calls = example.answer.calls if example.answer else ()
    spans = sorted({m.span() for c in calls for value in c.arguments.values() for m in stated(value, text)})
    pieces, at = [], 0
    for start, end in spans:
        if start < at:
            continue  # values that overlap: the first one stands
        pieces += [*text[at:start].split(), text[start:end]]
        at = end
    return [*pieces, *text[at:].split()]


def _small_words(examples: Sequence[Example], share: float) -> frozenset[str]:
    """Words that stand with at least this share of the functions; "no call" counts as one."""
    functions: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        if example.answer is None:
            continue
        called = {call.tool for call in example.answer.calls} or {_NO_CALL}
        for word in set(re.findall(r"\w+", example.request.text.casefold())):
            functions[word] |= called
    number = len(set().union(*functions.values())) if functions else 0
    return frozenset(word for word, names in functions.items() if len(names) >= max(3, share * number))
