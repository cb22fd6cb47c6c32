"""Makes new rows by putting other values into verified ones: other rooms, devices, numbers, names.

Paper: Wei and Zou, EDA, 2019, arXiv:1901.11196 (replacement as augmentation), led by the call's own arguments.
Use when: the student has few rows; it learns that a value is copied from the request, not remembered.
Differs from the paper: only argument values are exchanged, in text and call together; the verifier judges the result.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from supertiny.core.leaks import normalised
from supertiny.core.records import Call, Example
from supertiny.core.task import Task
from supertiny.prototype.curators._rewriting import is_writable, rewritten, stated, texts_not_to_make, written


@dataclass(frozen=True)
class Substitute:
    """A value is exchanged where the request states it once, word for word; what the verifier fails is dropped."""

    copies: Annotated[int, Field(ge=0)] = 4
    """New rows tried for each row."""
    swap_share: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Chance that a value which can be exchanged is."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        generator = random.Random(seed)
        pools = _values_seen(examples, task)
        made = list(examples)
        # What is asked later must not be made here by chance: the leak guard of the task, for new rows.
        known = texts_not_to_make(examples, task)
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
                instead = _as_written(arguments[number][name], spot.group())
                text = text[: spot.start()] + instead + text[spot.end() :]
        calls = [Call(call.tool, values) for call, values in zip(example.answer.calls, arguments, strict=True)]
        return rewritten(example, text, calls, task, "substitute", copy)


def _values_seen(examples: Sequence[Example], task: Task) -> dict[tuple[str, str], list[Any]]:
    """Per (function, argument) its enum, or the values that the examples hold."""
    seen: defaultdict[tuple[str, str], dict[Any, None]] = defaultdict(dict)
    for example in examples:
        for call in example.answer.calls if example.answer else ():
            for name, value in call.arguments.items():
                if is_writable(value):
                    seen[(call.tool, name)][value] = None
    pools = {key: list(values) for key, values in seen.items()}
    for tool in task.tools:
        for name, schema in tool.parameters.get("properties", {}).items():
            if schema.get("enum"):
                pools[(tool.name, name)] = [value for value in schema["enum"] if is_writable(value)]
    return pools


def _places(calls: Sequence[Call], text: str) -> list[tuple[re.Match[str], int, str]]:
    """(place, number of the call, argument) of values that the text states once and that no other value shares."""
    found = [
        (list(stated(value, text)), number, name)
        for number, call in enumerate(calls)
        for name, value in call.arguments.items()
    ]
    taken = Counter(letter for places, *_ in found for place in places for letter in range(*place.span()))
    return [
        (places[0], number, name)
        for places, number, name in found
        if len(places) == 1 and all(taken[letter] == 1 for letter in range(*places[0].span()))
    ]


def _as_written(value: Any, model: str) -> str:
    return written(value).lower() if model.islower() else written(value)
