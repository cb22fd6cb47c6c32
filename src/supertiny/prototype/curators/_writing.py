"""What the teacher is told when it writes new requests, and how its list is read."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from supertiny.core.records import Example, Grammar, Prompt, Tool
from supertiny.core.task import Task
from supertiny.prototype.prompting import function_list

_LONGEST_CHARACTERS = 400
_NO_CALL = ""
_SCHEMA = {
    "type": "object",
    "properties": {"requests": {"type": "array", "items": {"type": "string"}}},
    "required": ["requests"],
    "additionalProperties": False,
}
REQUESTS = Grammar("json_schema", json.dumps(_SCHEMA))
_WHOLE_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Wish:
    """One list of requests that the teacher is asked for."""

    function: str
    """Empty for requests that no function serves."""
    seeds: tuple[Example, ...]
    """Solved rows that are shown; at least one."""
    values: tuple[str, ...]
    """One line per request: the arguments that it should mention."""


def wishes_of(
    task: Task, solved: Sequence[Example], count: int, texts: int, seeds: int, generator: random.Random
) -> list[Wish]:
    """`count` wishes, functions in turn; "no call" has its turn where solved rows show it."""
    by_function: defaultdict[str, list[Example]] = defaultdict(list)
    for row in solved:
        names = {call.tool for call in row.answer.calls} if row.answer else set()
        if len(names) <= 1:
            by_function[next(iter(names), _NO_CALL)].append(row)
    functions = [tool.name for tool in task.tools] + ([_NO_CALL] if by_function[_NO_CALL] else [])
    generator.shuffle(functions)
    wishes = []
    for number in range(count):
        function = functions[number % len(functions)]
        rows = by_function[function] or list(solved)
        shown = generator.sample(rows, min(seeds, len(rows)))
        tool = task.tool_map.get(function)
        values = tuple(_drawn(tool, generator) for _ in range(texts)) if tool else ()
        wishes.append(Wish(function, tuple(shown), values))
    return wishes


def writing_prompt(task: Task, wish: Wish, texts: int) -> Prompt:
    """The task and the function, seed requests as the tone to keep, and the values to mention."""
    tools = [task.tool_map[wish.function]] if wish.function else list(task.tools)
    system = (
        f"You write what users say to this system: {task.description.strip()}\n"
        "Write as different people would: short and long, polite and blunt, in other words each time, in the language "
        f'of the examples. Answer with JSON: {{"requests": ["...", "..."]}}.\n\n{function_list(tools)}'
    )
    about = f"that the function {wish.function} serves" if wish.function else "that none of the functions serves"
    lines = [f"Write {texts} new requests {about}."]
    if any(wish.values):
        lines += ["Each states these values, in the user's own words:", *(f"- {line}" for line in wish.values if line)]
    lines += ["Examples of the tone, not to be repeated:", *(f"- {_one_line(row)}" for row in wish.seeds)]
    messages = ({"role": "system", "content": system}, {"role": "user", "content": "\n".join(lines)})
    return Prompt(messages, shared=1)


def read_requests(text: str) -> list[str]:
    """The requests of a list, each on one line; of a list that was cut off or is no JSON, the whole strings in it."""
    try:
        listed = json.loads(text)
        listed = listed.get("requests", []) if isinstance(listed, dict) else listed
    except ValueError:
        strings = _WHOLE_STRING.findall(text.partition("[")[2])
        listed = [_unquoted(string) for string in strings]
    if not isinstance(listed, list):
        return []
    plain = [" ".join(item.split()) for item in listed if isinstance(item, str) and _is_whole(item)]
    return [item for item in plain if 0 < len(item) <= _LONGEST_CHARACTERS]


def _unquoted(string: str) -> str:
    try:
        return str(json.loads(string))
    except ValueError:
        return ""


def _is_whole(text: str) -> bool:
    """Whether no character of the text is half of one."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _one_line(row: Example) -> str:
    return " ".join(row.request.text.split())[:_LONGEST_CHARACTERS]


def _drawn(tool: Tool, generator: random.Random) -> str:
    """Values for a request: every argument that is needed, others by the toss of a coin."""
    needed = set(tool.parameters.get("required", ()))
    pairs = []
    for name, schema in tool.parameters.get("properties", {}).items():
        value = _value(schema if isinstance(schema, Mapping) else {}, generator)
        if value is not None and (name in needed or generator.random() < 0.5):
            pairs.append(f"{name} {value}")
    return ", ".join(pairs)


def _value(schema: Mapping[str, Any], generator: random.Random) -> Any:
    """A value that the schema allows, or None where the writer should think of one."""
    if schema.get("enum"):
        return generator.choice(list(schema["enum"]))
    if schema.get("type") == "integer":
        low = int(schema.get("minimum", 0))
        return generator.randint(low, max(low, int(schema.get("maximum", low + 100))))
    return None
