"""A task's functions: read as other programs list them, or inferred from the calls that speak of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.files import read_rows
from supertiny.core.records import Call, Tool
from supertiny.core.schemas import with_known_types
from supertiny.core.task_rows import SPLITS
from supertiny.core.verifying import check_schema

# A text argument is an enum where it has few values that come again and again; names and free text are not.
ENUM_VALUES, ENUM_REPEATS = 20, 3.0
INTEGER, NUMBER = "integer", "number"


def read_tools(value: Any) -> list[Tool]:
    """Functions that a row brings along: a list in OpenAI's format, it or its parameters as JSON text, or nothing.

    Types that are named as Python names them are put into JSON Schema's words. Raises ValueError where one is none.
    """
    listed = json.loads(value) if isinstance(value, str) and value.strip() else value or []
    if not isinstance(listed, list):
        raise ValueError(f"tools must be a list; found {type(listed).__name__}")
    tools = [Tool.from_openai(with_known_types(_with_parameters(tool))) for tool in listed]
    problem = next(filter(None, map(check_schema, tools)), "")
    if problem:
        raise ValueError(problem)
    return tools


def _with_parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    parameters = function.get("parameters")
    return {**function, "parameters": json.loads(parameters or "{}")} if isinstance(parameters, str) else tool


def tools_from(labelled: Path) -> list[Tool]:
    """The functions that the calls of a JSONL file and of the splits beside it speak of, with inferred JSON Schema.

    All splits are read, so that the schema refuses no split's gold; see `infer_tools` for what it tells of test.
    """
    errors: list[UserError] = []
    calls = {"labelled": _calls_of(labelled, errors)}
    for split in SPLITS:
        path = labelled.parent / f"{split}.jsonl"
        if path.is_file() and path.resolve() != labelled.resolve():
            calls[split] = calls.get(split, []) + _calls_of(path, errors)
    if errors:
        raise UserErrors(errors)
    if not any(calls.values()):
        raise UserError(f"{labelled} has no calls to infer functions from")
    return infer_tools(calls)


def _calls_of(path: Path, errors: list[UserError]) -> list[Call]:
    calls: list[Call] = []
    for number, row in enumerate(read_rows(path), 1):
        try:
            calls += [Call.from_json(call) for call in row.get("calls") or ()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            errors.append(UserError(f"{path}: row {number}: a call cannot be read: {error}"))
    return calls


def infer_tools(calls: Mapping[str, Sequence[Call]]) -> list[Tool]:
    """One tool per function name, in alphabetical order, from the calls of each split.

    An argument that all calls have is required. Test tells names of functions and arguments and types alone, which a
    task states to everybody: no value of it is written, and a list of values that test leaves is not written at all.
    """
    by_name: dict[str, tuple[list[Any], list[Any]]] = {}
    for split, made in calls.items():
        for call in made:
            if not isinstance(call.arguments, Mapping):
                raise UserError(f"arguments of a call of {call.tool!r} are no JSON object: {call.arguments!r}")
            by_name.setdefault(call.tool, ([], []))[split == "test"].append(call.arguments)
    return [Tool(name, "", _object(*by_name[name])) for name in sorted(by_name)]


def _object(seen: Sequence[Mapping[str, Any]], hidden: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = [*seen, *hidden]
    names = sorted({name for arguments in whole for name in arguments})
    properties = {
        name: _schema([a[name] for a in seen if name in a], [a[name] for a in hidden if name in a]) for name in names
    }
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    required = [name for name in names if all(name in arguments for arguments in whole)]
    if required:
        schema["required"] = required
    return schema | {"additionalProperties": False}


def _schema(seen: Sequence[Any], hidden: Sequence[Any]) -> dict[str, Any]:
    """The narrowest schema that all values meet. Numbers that are written as text are numbers where others are."""
    kinds = {_kind(value) for value in (*seen, *hidden)}
    if kinds & {INTEGER, NUMBER} and "string" in kinds:
        seen, hidden = [_number(value) for value in seen], [_number(value) for value in hidden]
        kinds = {_kind(value) for value in (*seen, *hidden)}
    if NUMBER in kinds:
        kinds.discard(INTEGER)
    if kinds == {"object"}:
        return _object(seen, hidden)
    if kinds == {"array"}:
        items, more = ([item for value in values for item in value] for values in (seen, hidden))
        return {"type": "array", "items": _schema(items, more)} if items or more else {"type": "array"}
    if kinds == {"string"}:
        different = sorted(set(seen))
        repeated = len(different) <= ENUM_VALUES and len(seen) >= ENUM_REPEATS * max(1, len(different))
        holds = repeated and set(hidden) <= set(different)
        return {"type": "string", "enum": different} if holds else {"type": "string"}
    return {"type": next(iter(kinds))} if len(kinds) == 1 else {"type": sorted(kinds)}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return INTEGER
    if isinstance(value, float):
        return INTEGER if value.is_integer() else NUMBER
    if value is None:
        return "null"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
