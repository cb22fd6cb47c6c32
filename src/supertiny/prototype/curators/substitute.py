"""Makes new rows by putting other values into verified ones: other rooms, devices, numbers, names.

Paper: Wei and Zou, EDA, 2019, arXiv:1901.11196 (replacement as augmentation), led by the call's own arguments.
Use when: the student has few rows; it learns that a value is copied from the request, not remembered.
Differs from the paper: only argument values are exchanged, in text and call together; the verifier judges the result.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from supertiny.core.leaks import normalised
from supertiny.core.records import Answer, Call, Example, Request
from supertiny.core.task import Task


@dataclass(frozen=True)
class Substitute:
    """A value is exchanged where the request states it once, word for word; what the verifier fails is dropped."""

    copies: int = 4
    """New rows tried for each row."""
    swap_share: float = 0.7
    """Chance that a value which can be exchanged is."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        generator = random.Random(seed)
        pools = _values_seen(examples, task)
        made = list(examples)
        # What is asked later must not be made here by chance: the leak guard of the task, for new rows.
        known = {normalised(row.request.text) for row in (*examples, *task.valid, *task.test)}
        for example in examples:
            for copy in range(self.copies):
                new = self._exchange(example, task, pools, generator, copy)
                if new is not None and normalised(new.request.text) not in known:
                    known.add(normalised(new.request.text))
                    made.append(new)
        return made

    def _exchange(
        self,
        example: Example,
        task: Task,
        pools: Mapping[tuple[str, str], list[Any]],
        generator: random.Random,
        copy: int,
    ) -> Example | None:
        if example.answer is None or not example.answer.calls:
            return None
        text = example.request.text
        arguments = [dict(call.arguments) for call in example.answer.calls]
        # From right to left, so that the places before stay where they were.
        for spot, number, name in sorted(_places(example.answer.calls, text), key=lambda p: -p[0].start()):
            key = (example.answer.calls[number].tool, name)
            choices = [other for other in pools.get(key, ()) if other != arguments[number][name]]
            if choices and generator.random() <= self.swap_share:
                arguments[number][name] = generator.choice(choices)
                written = _as_written(arguments[number][name], spot.group())
                text = text[: spot.start()] + written + text[spot.end() :]
        calls = [Call(call.tool, values) for call, values in zip(example.answer.calls, arguments, strict=True)]
        request = _with_text(example.request, text, copy)
        verdict = task.verify(request, calls)
        if text == example.request.text or verdict.outcome == "fail":
            return None
        answer = Answer(tuple(calls), by=example.answer.by)
        provenance = {
            **example.provenance,
            "origin": example.request.id,
            "made_by": "substitute",
            "source": "substitute",
        }
        return replace(example, request=request, answer=answer, verdict=verdict, provenance=provenance)


def _values_seen(examples: Sequence[Example], task: Task) -> dict[tuple[str, str], list[Any]]:
    """Per (function, argument) its enum, or the values that the examples hold."""
    seen: defaultdict[tuple[str, str], dict[Any, None]] = defaultdict(dict)
    for example in examples:
        for call in example.answer.calls if example.answer else ():
            for name, value in call.arguments.items():
                if _can_be_written(value):
                    seen[(call.tool, name)][value] = None
    pools = {key: list(values) for key, values in seen.items()}
    for tool in task.tools:
        for name, schema in tool.parameters.get("properties", {}).items():
            if schema.get("enum"):
                pools[(tool.name, name)] = [value for value in schema["enum"] if _can_be_written(value)]
    return pools


def _places(calls: Sequence[Call], text: str) -> list[tuple[re.Match[str], int, str]]:
    """(place, number of the call, argument) of values that the text states once and that no other value shares."""
    stated = [
        (list(_stated(value, text)), number, name)
        for number, call in enumerate(calls)
        for name, value in call.arguments.items()
    ]
    taken = Counter(letter for places, *_ in stated for place in places for letter in range(*place.span()))
    return [
        (places[0], number, name)
        for places, number, name in stated
        if len(places) == 1 and all(taken[letter] == 1 for letter in range(*places[0].span()))
    ]


def _stated(value: Any, text: str) -> Iterator[re.Match[str]]:
    """Where the text states the value as whole words, or as a whole number."""
    if not _can_be_written(value) or str(value) == "":
        return iter(())
    before, after = (r"(?<![\w.,-])", r"(?![.,]?\w)") if not isinstance(value, str) else (r"(?<!\w)", r"(?!\w)")
    return re.finditer(before + re.escape(_written(value)) + after, text, re.IGNORECASE)


def _can_be_written(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _as_written(value: Any, model: str) -> str:
    return _written(value).lower() if model.islower() else _written(value)


def _with_text(request: Request, text: str, copy: int) -> Request:
    last = max(place for place, message in enumerate(request.messages) if message.get("role") == "user")
    messages = list(request.messages)
    messages[last] = {**messages[last], "content": text}
    return replace(request, id=f"{request.id}/substitute-{copy}", messages=tuple(messages))
