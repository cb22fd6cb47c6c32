"""Arguments as places in a text: marked in it, read back from its marks, and as tags of its words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

_MARK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]+)\)")
_WORD = re.compile(r"\w+|[^\w\s]")
OUT = "O"
Span = tuple[int, int, str]  # start, end, argument
Word = tuple[str, int, int]  # word, start, end


def spans_of(text: str, arguments: Mapping[str, Any]) -> list[Span]:
    """Where the text states each argument, in the order of the text; what it does not state is left out."""
    spans: list[Span] = []
    at = 0
    for name, value in arguments.items():
        found = _find(text, str(value), at, spans)
        if found is not None:
            spans.append((*found, name))
            at = found[1]
    return sorted(spans)


def _find(text: str, value: str, at: int, taken: Sequence[Span]) -> tuple[int, int] | None:
    """As whole words, whatever their case: after the value before, or else wherever it is free."""
    if not value.strip():
        return None
    found = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE)]
    free = [(start, end) for start, end in found if all(start >= last or end <= first for first, last, _ in taken)]
    return next((span for span in free if span[0] >= at), free[0] if free else None)


def marked(text: str, arguments: Mapping[str, Any]) -> str:
    """The text on one line with every value marked: `rate this [book](object_type)`."""
    written, at = [], 0
    for start, end, name in spans_of(text, arguments):
        written.append(f"{text[at:start]}[{text[start:end]}]({name})")
        at = end
    return " ".join(("".join(written) + text[at:]).split())


def read_marked(text: str, written: str) -> dict[str, str] | None:
    """Arguments of a marked text, in the text's own letters; None where it says something else than the text.

    Case and blanks may differ. An argument's second mark is left out.
    """
    plain, at = "", 0
    places: list[Span] = []
    for match in _MARK.finditer(written):
        plain += written[at : match.start()]
        places.append((len(plain), len(plain) + len(match.group(1)), match.group(2)))
        plain += match.group(1)
        at = match.end()
    letters, source = _letters(plain + written[at:]), _letters(text)
    if [letter for letter, _ in letters] != [letter for letter, _ in source]:
        return None
    found: dict[str, str] = {}
    for start, end, name in places:
        inside = [source[number][1] for number, (_, place) in enumerate(letters) if start <= place < end]
        if inside:
            found.setdefault(name, text[inside[0] : inside[-1] + 1])
    return found


def _letters(text: str) -> list[tuple[str, int]]:
    """Letters without case and blanks, each with its place."""
    return [(letter.lower(), place) for place, letter in enumerate(text) if not letter.isspace()]


def as_listed(text: str, schema: Any) -> str:
    """The text, or the value of the schema's list that it spells in another case."""
    listed = schema.get("enum", ()) if isinstance(schema, Mapping) else ()
    return next((value for value in listed if isinstance(value, str) and value.casefold() == text.casefold()), text)


def words_of(text: str) -> list[Word]:
    """Every word and every punctuation mark."""
    return [(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]


def tags_of(words: Sequence[Word], text: str, arguments: Mapping[str, Any]) -> list[str]:
    """B-NAME at the first word of an argument's value, I-NAME at its others, O elsewhere."""
    tags = [OUT] * len(words)
    for start, end, name in spans_of(text, arguments):
        inside = [place for place, (_, first, last) in enumerate(words) if first >= start and last <= end]
        for number, place in enumerate(inside):
            tags[place] = f"{'I' if number else 'B'}-{name}"
    return tags


def arguments_of(words: Sequence[Word], text: str, tags: Sequence[str]) -> dict[str, str]:
    """Inverse of `tags_of`."""
    found = {}
    tagged = [(tag[2:], word) for word, tag in zip(words, tags, strict=True) if tag != OUT]
    for name, group in groupby(tagged, key=lambda pair: pair[0]):
        own = [word for _, word in group]
        found[name] = text[own[0][1] : own[-1][2]]
    return found
