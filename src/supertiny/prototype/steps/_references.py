"""Calls of a plan, which may refer to each other's results: who waits for whom, and what a reference stands for.

A reference is a whole text, $1 or $1.name, or stands in braces within one, ${1.name}. What the request itself says,
such as a price of $5, is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from supertiny.core.records import Call, Request, Tool, said
from supertiny.core.verifying import schema_problem

if TYPE_CHECKING:
    from supertiny.prototype.bench import Result

WHOLE = r"\$(?:\{(\d+)\}|(\d+))((?:\.\w+)*)"  # $1, $1.name, ${1}
_WHOLE = re.compile(WHOLE)
_WITHIN = re.compile(r"\$\{(\d+)((?:\.\w+)*)\}")  # inside a longer text: ${1}, ${1.name}


def said_in(request: Request) -> str:
    """All that a request says."""
    return "\n".join(said(message) for message in request.messages)


def waits_for(call: Call, said: str) -> set[int]:
    """Numbers of the calls, from 1, whose results stand in this call's arguments; `said` is what the request says."""
    return {number for text in _texts(call.arguments) if not _is_said(text, said) for number in _numbers(text)}


def plan_problem(calls: Sequence[Call], said: str, tools: Sequence[Tool] = ()) -> str:
    """Why these calls cannot be carried out in any order, in words; empty where they can.

    With `tools`, also what their schemas say of the calls, whatever the references will become.
    """
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
    known = {tool.name: tool for tool in opened(tools)}
    return next((problem for call in calls if (problem := schema_problem(call, known))), "") if known else ""


def opened(tools: Sequence[Tool]) -> list[Tool]:
    """The same functions, whose arguments may also be references."""
    free = {"type": "string", "pattern": f"^{WHOLE}$"}
    return [with_properties(tool, lambda schema: {"anyOf": [schema, free]}) for tool in tools]


def with_properties(tool: Tool, change: Callable[[Any], Any]) -> Tool:
    """The function with another schema for each of its arguments."""
    properties = {name: change(schema) for name, schema in tool.parameters.get("properties", {}).items()}
    return Tool(tool.name, tool.description, {**tool.parameters, "properties": properties})


def resolved(call: Call, said: str, results: Mapping[int, Result]) -> Call:
    """The call with its references replaced by results, by their numbers.

    Raises LookupError where there is no such result or part of one, or its call failed.
    """

    def part(number: int, path: str) -> Any:
        return _part(number, path, results)

    def changed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: changed(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [changed(item) for item in value]
        if not isinstance(value, str) or _is_said(value, said):
            return value
        found = _WHOLE.fullmatch(value)
        if found:
            return part(int(found[1] or found[2]), found[3])
        return _WITHIN.sub(lambda found: _written(part(int(found[1]), found[2])), value)

    return Call(call.tool, changed(call.arguments))


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
    """Whether the request has this text: "$1" is not in "$10", "$1.50" or "$1,000"."""
    return re.search(re.escape(text) + r"(?![.,]?\d)", said) is not None


def _numbers(text: str) -> Iterator[int]:
    whole = _WHOLE.fullmatch(text)
    if whole:
        yield int(whole[1] or whole[2])
    else:
        yield from (int(found[1]) for found in _WITHIN.finditer(text))


def _part(number: int, path: str, results: Mapping[int, Result]) -> Any:
    """The part of a result that a path such as `.items.0.name` leads to."""
    if results[number].error:
        raise LookupError(f"call {number} failed")
    value = results[number].value
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
