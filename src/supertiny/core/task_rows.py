"""Rows of a task's splits: read, checked and given an id; every mistake is told with its file and line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, nearest_word
from supertiny.core.files import hash_of
from supertiny.core.records import Example, Tool
from supertiny.core.verifying import check_schema, schema_problem

SPLITS = ("labelled", "unlabelled", "valid", "test")
FIELDS = ("id", "text", "messages", "calls", "tools", "provenance", "text_answer")
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Row:
    """An example and the file:line it stands at."""

    place: str
    example: Example


def read_split(
    path: Path, split: str, tools: Mapping[str, Tool], errors: list[UserError], taken: set[str]
) -> list[Row]:
    """Rows of one split. Mistakes are appended to `errors`, and their rows left out.

    `taken` holds the ids of the splits read before, and gets this one's: an id that is taken is put behind the
    split's name.
    """
    if not path.is_file():
        errors.append(UserError(f"{path} is not there", f"the split {split!r} needs a row a line"))
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        errors.append(UserError(f"{path} is not UTF-8: {error}"))
        return []
    rows: list[Row] = []
    seen: dict[str, str] = {}
    filled = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        filled = True
        place = f"{path}:{number}"
        example = _read_row(line, place, split, tools, errors)
        if example is None:
            continue
        example = _with_id(example, split, seen, taken)
        if example.request.id in seen:
            errors.append(UserError(f"{place}: the id {example.request.id!r} stands at {seen[example.request.id]} too"))
            continue
        seen[example.request.id] = place
        rows.append(Row(place, example))
    taken.update(seen)
    if not filled:
        errors.append(UserError(f"{path}: the split {split!r} is empty", "it needs at least one row"))
    return rows


def _read_row(line: str, place: str, split: str, tools: Mapping[str, Tool], errors: list[UserError]) -> Example | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        errors.append(UserError(f"{place}: broken JSON: {error.msg} at column {error.colno}"))
        return None
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        errors.append(UserError(f"{place}: holds half a character, {error.object[error.start]!a}, as an escape"))
        return None
    problem, hint = _shape_problem(row, split)
    if problem:
        errors.append(UserError(f"{place}: {problem}", hint))
        return None
    try:
        example = Example.from_json({name: row[name] for name in FIELDS if name in row})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        errors.append(UserError(f"{place}: cannot be read: {type(error).__name__}: {error}"))
        return None
    wrong = next(filter(None, map(check_schema, example.request.tools)), "")
    if wrong:
        errors.append(UserError(f"{place}: {wrong}"))
        return None
    known = {tool.name: tool for tool in example.request.tools} or tools
    problems = [schema_problem(call, known) for call in example.answer.calls] if example.answer and known else []
    told = [UserError(f"{place}: {problem}") for problem in problems if problem]
    errors.extend(told)
    return None if told else example


def _shape_problem(row: Any, split: str) -> tuple[str, str]:
    if not isinstance(row, dict):
        return f"a row must be a JSON object; found {type(row).__name__}", ""
    for name in row:
        if name not in FIELDS and get_close_matches(name, FIELDS, n=1, cutoff=0.8):  # a slip; other fields are ignored
            return f"there is no field {name!r}", nearest_word(name, FIELDS)
    problem = _request_problem(row)
    if problem:
        return problem, ""
    calls = row.get("calls")
    if calls is None:
        if split == "unlabelled":
            return "", ""
        return f"a row of {split!r} has no calls", 'write "calls": [] where no function serves'
    if not isinstance(calls, list):
        return f"calls must be a list; found {type(calls).__name__}", ""
    for call in calls:
        body = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(body, dict) or not isinstance(body.get("name"), str):
            return 'a call must be {"name", "arguments"}', ""
    return "", ""


def _request_problem(row: Mapping[str, Any]) -> str:
    messages = row.get("messages")
    if messages is None:
        if not isinstance(row.get("text"), str):
            return "a row needs a text or messages"
        return "" if row["text"].strip() else "the text is empty"
    if not isinstance(messages, list) or not messages:
        return "messages must be a list of at least one message"
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return f"a message needs a role of {', '.join(ROLES)}"
    if not any(message["role"] == "user" for message in messages):
        return "messages have no user's message"
    return ""


def _with_id(example: Example, split: str, seen: Mapping[str, str], taken: set[str]) -> Example:
    """A row's own id, or one made of its content; the same content twice in a split gets a number."""
    given = example.request.id
    if given and given not in taken:
        return example
    content = [dict(message) for message in example.request.messages]
    made = first = f"{split}-{given or hash_of(content)[:12]}"
    copies = 1
    while made in seen and not given:
        copies += 1
        made = f"{first}-{copies}"
    return replace(example, request=replace(example.request, id=made))
