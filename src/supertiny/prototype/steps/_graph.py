"""Calls that refer to each other's results: who waits for whom, and what a reference stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from supertiny.core.records import Call, Tool
from supertiny.prototype.bench import Result, Trace

_WHOLE = re.compile(r"\$(?:\{(\d+)\}|(\d+))((?:\.\w+)*)")  # $1, $1.name, ${1}
_WITHIN = re.compile(r"\$\{(\d+)((?:\.\w+)*)\}")  # inside a longer text: ${1}, ${1.name}


def waits_for(call: Call, said: str) -> set[int]:
    """Numbers of the calls, from 1, whose results stand in this call's arguments.

    What the request itself says, such as a price of $5, is no reference.
    """
    return {number for text in _texts(call.arguments) if not _is_said(text, said) for number in _numbers(text)}


def plan_problem(calls: Sequence[Call], said: str) -> str:
    """Why these calls cannot be carried out in any order, in words; empty where they can."""
    waits = [waits_for(call, said) for call in calls]
    for number, needed in enumerate(waits, 1):
        for other in sorted(needed):
            if not 1 <= other <= len(calls):
                return f"call {number} refers to ${other}, and there is no call {other}"
    done: set[int] = set()
    while len(done) < len(calls):
        ready = {number for number, needed in enumerate(waits, 1) if needed <= done} - done
        if not ready:
            stuck = [str(number) for number in range(1, len(calls) + 1) if number not in done]
            return f"calls {', '.join(stuck)} wait for each other" if stuck[1:] else f"call {stuck[0]} waits for itself"
        done |= ready
    return ""


def resolved(call: Call, said: str, results: Mapping[int, Result]) -> Call:
    """The call with its references replaced by results. Raises LookupError where a result has no such part."""
    return Call(call.tool, {name: _resolved(value, said, results) for name, value in call.arguments.items()})


class Running:
    """A request's plan under way; `said` is what the request says."""

    def __init__(self, trace: Trace, said: str) -> None:
        self.trace = trace
        self.results: dict[int, Result] = {}
        self._said = said
        calls = trace.calls or ()
        self._plan = {} if plan_problem(calls, said) else dict(enumerate(calls, 1))
        self._made: dict[int, Call] = {}

    def ready(self) -> list[tuple[int, Call]]:
        """Number and call of those whose references are known now; those that cannot be resolved have failed."""
        failed = True
        while failed:  # what waits for a call that failed has failed as well
            failed = False
            for number, call in self._plan.items():
                waits = waits_for(call, self._said)
                if number in self._made or not waits <= self.results.keys():
                    continue
                lost = sorted(other for other in waits if self.results[other].error)
                try:
                    if lost:
                        raise LookupError(f"call {lost[0]} failed")
                    self._made[number] = resolved(call, self._said, self.results)
                except LookupError as error:
                    self._made[number], self.results[number] = call, Result(call, None, str(error))
                    failed = True
        return [(number, call) for number, call in self._made.items() if number not in self.results]

    def finished(self) -> Trace:
        """The trace with its references replaced, and with the results, in the order of the plan."""
        if not self._plan:
            return self.trace
        calls = tuple(self._made[number] for number in self._plan)
        return replace(self.trace, calls=calls, results=tuple(self.results[number] for number in self._plan))


def opened(tools: Sequence[Tool]) -> list[Tool]:
    """The same functions, whose arguments may also be references."""
    free = {"type": "string", "pattern": f"^{_WHOLE.pattern}$"}
    return [_with_properties(tool, lambda schema: {"anyOf": [schema, free]}) for tool in tools]


def listed(tools: Sequence[Tool]) -> list[Tool]:
    """Opened functions as a grammar can state them: references are $1 to $9 and have no parts."""
    few = {"enum": [f"${number}" for number in range(1, 10)]}
    return [_with_properties(tool, lambda schema: {"anyOf": [schema["anyOf"][0], few]}) for tool in tools]


def _with_properties(tool: Tool, change: Callable[[Any], Any]) -> Tool:
    properties = {name: change(schema) for name, schema in tool.parameters.get("properties", {}).items()}
    return Tool(tool.name, tool.description, {**tool.parameters, "properties": properties})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _is_said(text: str, said: str) -> bool:
    """Whether the request has this text: "$1" is not in "$10" or "$1.50"."""
    return re.search(re.escape(text) + r"(?!\d|\.\d)", said) is not None


def _numbers(text: str) -> Iterator[int]:
    whole = _WHOLE.fullmatch(text)
    if whole:
        yield int(whole[1] or whole[2])
    else:
        yield from (int(found[1]) for found in _WITHIN.finditer(text))


def _resolved(value: Any, said: str, results: Mapping[int, Result]) -> Any:
    if isinstance(value, Mapping):
        return {name: _resolved(item, said, results) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(item, said, results) for item in value]
    if not isinstance(value, str) or _is_said(value, said):
        return value
    whole = _WHOLE.fullmatch(value)
    if whole:
        return _part(results[int(whole[1] or whole[2])].value, whole[3])
    return _WITHIN.sub(lambda found: _written(_part(results[int(found[1])].value, found[2])), value)


def _part(value: Any, path: str) -> Any:
    """The part of a result that a path such as `.items.0.name` leads to."""
    for key in path.split(".")[1:]:
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            raise LookupError(f"the result has no part {key!r}")
    return value


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
