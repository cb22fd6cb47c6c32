"""What the teacher is told: the functions in few tokens, and solved examples as turns of the conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from supertiny.core.protocols import Format
from supertiny.core.records import Answer, Example, Message, Prompt, Tool

_LONG_LIST = 6  # values from which a list stands once, below the functions
_JSON_RULES = (
    'Answer with a JSON list of calls, [{"name": ..., "arguments": {...}}], and nothing else. '
    "Answer [] when no function serves the request."
)


def instructions(description: str, form: Format, tools: Sequence[Tool]) -> str:
    """The system message of the pipeline: task, rules of the format, functions."""
    return "\n".join([description.strip(), form.rules, "", function_list(tools)])


def plain_instructions(description: str, form: Format, tools: Sequence[Tool]) -> str:
    """The system message of the one plain prompt: task, functions, and how to write calls."""
    words = _JSON_RULES if form.write(Answer()) == "[]" else form.rules
    return f"{description}\n\n{function_list(tools)}\n\n{words}"


def function_list(tools: Sequence[Tool]) -> str:
    """One signature per function, and each argument's long list of values once."""
    lists = _value_lists(tools)
    lines = ["Functions:", *(_signature(tool, lists) for tool in tools)]
    lines += ["", "Values:"] if lists else []
    lines += [f"{name}: {', '.join(values)}" for name, values in lists.items()]
    return "\n".join(lines)


def _signature(tool: Tool, lists: Mapping[str, Sequence[str]]) -> str:
    properties = tool.parameters.get("properties", {})
    needed = set(tool.parameters.get("required", ()))
    arguments = [
        f"{name}{'' if name in needed else '?'}{_kind(name, schema, lists)}" for name, schema in properties.items()
    ]
    about = f": {tool.description.strip()}" if tool.description else ""
    return f"{tool.name}({', '.join(arguments)}){about}"


def _kind(name: str, schema: Mapping[str, Any], lists: Mapping[str, Sequence[str]]) -> str:
    if "enum" in schema:
        values = [str(value) for value in schema["enum"]]
        # A part of a list that stands below is not spelled out again: the grammar keeps to it anyway.
        listed = len(values) >= _LONG_LIST and set(values) <= set(lists.get(name, ()))
        return f" <{name}>" if listed else " " + "|".join(values)
    return " number" if schema.get("type") in ("number", "integer") else ""


def _value_lists(tools: Sequence[Tool]) -> dict[str, list[str]]:
    """Long value lists by argument name, functions' lists for the same argument taken together."""
    lists: dict[str, dict[str, None]] = {}
    for tool in tools:
        for name, schema in tool.parameters.get("properties", {}).items():
            values = [str(value) for value in schema.get("enum", ())]
            if len(values) >= _LONG_LIST:
                lists.setdefault(name, {}).update(dict.fromkeys(values))
    return {name: list(values) for name, values in lists.items()}


def few_shot_messages(examples: Sequence[Example], form: Format) -> list[Message]:
    """Solved examples as user and assistant turns, in the order given."""
    turns: list[Message] = []
    for example in examples:
        if example.answer is None:
            continue
        turns += example.request.messages
        turns.append({"role": "assistant", "content": form.write(example.answer)})
    return turns


def going_on(prompt: Prompt, written: str, reply: str) -> Prompt:
    """The prompt, what the model wrote after it, and what it is told of that."""
    turns = ({"role": "assistant", "content": written}, {"role": "user", "content": reply})
    return replace(prompt, messages=(*prompt.messages, *turns))
