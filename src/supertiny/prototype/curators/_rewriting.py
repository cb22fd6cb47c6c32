"""What the curators that rewrite requests share: where a request states a value, and a row with another text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from supertiny.core.leaks import normalised
from supertiny.core.records import Answer, Call, Example, Request
from supertiny.core.task import Task


def stated(value: Any, text: str) -> Iterator[re.Match[str]]:
    """Where the text states the value as whole words, or as a whole number."""
    if not is_writable(value) or str(value) == "":
        return iter(())
    before, after = (r"(?<![\w.,-])", r"(?![.,]?\w)") if not isinstance(value, str) else (r"(?<!\w)", r"(?!\w)")
    return re.finditer(before + re.escape(written(value)) + after, text, re.IGNORECASE)


def is_writable(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def texts_not_to_make(examples: Sequence[Example], task: Task) -> set[str]:
    """Requests that are there already or are asked later: the task's leak guard, for new rows."""
    return {normalised(row.request.text) for row in (*examples, *task.valid, *task.test)}


def rewritten(example: Example, text: str, calls: Sequence[Call], task: Task, maker: str, copy: int) -> Example | None:
    """The row with another text and other calls, or None where nothing changed or the verifier fails it."""
    if example.answer is None or text == example.request.text:
        return None
    request = _with_text(example.request, text, f"{maker}-{copy}")
    verdict = task.verify(request, calls)
    if verdict.outcome == "fail":
        return None
    provenance = {**example.provenance, "origin": example.request.id, "made_by": maker, "source": maker}
    answer = Answer(tuple(calls), example.answer.text, by=example.answer.by)
    return replace(example, request=request, answer=answer, verdict=verdict, provenance=provenance)


def _with_text(request: Request, text: str, name: str) -> Request:
    last = max(place for place, message in enumerate(request.messages) if message.get("role") == "user")
    messages = list(request.messages)
    messages[last] = {**messages[last], "content": text}
    return replace(request, id=f"{request.id}/{name}", messages=tuple(messages))
