"""Task folders from what people have: an example of ours, OpenAI-style chat logs, or labelled rows without tools."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from supertiny.core.errors import UserError, UserErrors, nearest_word
from supertiny.core.files import hash_of, read_rows, write_json, write_rows, write_text
from supertiny.core.leaks import asked_text, find_leaks, normalised
from supertiny.core.records import Call, Tool, said
from supertiny.core.task_rows import SPLITS

EXAMPLES = Path(__file__).parents[3] / "examples"
SHARES: Mapping[str, float] = {"labelled": 0.15, "unlabelled": 0.45, "valid": 0.15, "test": 0.25}
FEWEST_ROWS = 8
# A text argument is an enum where it has few values that come again and again; names and free text are not.
ENUM_VALUES, ENUM_REPEATS = 20, 3.0
INTEGER, NUMBER = "integer", "number"


def copy_example(name: str, folder: Path) -> list[Path]:
    """Copies an example out, to be changed; name and task in its recipes become the copy's own.

    Raises UserError for an unknown name or a folder that is not empty.
    """
    known = {path.parent.name for path in EXAMPLES.glob("*/task.yaml")}
    if not known:
        raise UserError("the examples are not installed beside the package", "run from a checkout of the project")
    if name not in known:
        raise UserError(f"there is no example {name!r}", nearest_word(name, known))
    _check_free(folder)
    copied = []
    for path in sorted((EXAMPLES / name).iterdir()):
        if path.is_file() and not path.name.startswith("."):
            folder.mkdir(parents=True, exist_ok=True)
            copied.append(Path(shutil.copy2(path, folder / path.name)))
    for path in copied:
        if path.suffix == ".yaml" and path.stem.startswith(("recipe", "task")):
            _rename(path, name, folder)
    return copied


def _rename(path: Path, example: str, folder: Path) -> None:
    """Puts a copy's own name and folder into the lines `name:` and `task:`; all other lines and comments stay."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines):
        if line.startswith("name: "):
            own = line.removeprefix("name: ").replace(example, folder.resolve().name)
            lines[number] = f"name: {json.dumps(own, ensure_ascii=False)}"
        elif line.startswith("task: "):
            lines[number] = f"task: {json.dumps(str(folder), ensure_ascii=False)}"
    write_text(path, "\n".join(lines))


def new_from_logs(logs: Path, folder: Path, seed: int = 0) -> dict[str, int]:
    """A task folder from chat logs, one JSON object with `messages` a line; gives the rows per split.

    The assistant's message after the last user's is the answer: its tool_calls, or no call where it has none; or
    `tool_calls` beside `messages` are. What stood before is the request; a system message that all logs share becomes
    the task's description. The same request is taken once, with its first answer, and near-duplicates stay on one
    side of the splits. Tools are those that the logs carry, and are inferred from the calls where they carry none.
    Raises UserErrors with the place of every row that cannot be read.
    """
    _check_free(folder)
    errors: list[UserError] = []
    rows: dict[str, dict[str, Any]] = {}
    tools: dict[str, Tool] = {}
    for number, log in enumerate(read_rows(logs), 1):
        try:
            row = _row_of_log(log)
            for tool in (*(log.get("tools") or ()), *(log.get("functions") or ())):
                read = Tool.from_openai(tool)
                tools.setdefault(read.name, read)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            errors.append(UserError(f"{logs}: row {number}: {error}"))
            continue
        rows.setdefault(normalised(asked_text(row["messages"])), row)
    if not errors and len(rows) < FEWEST_ROWS:
        errors.append(UserError(f"{logs} has {len(rows)} different requests", f"a task needs at least {FEWEST_ROWS}"))
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    description = _taken_out(rows.values())
    splits = _without_leaks(_split(list(rows.values()), seed))
    calls = {split: [Call.from_json(c) for row in splits[split] for c in row["calls"]] for split in SPLITS}
    inferred = {tool.name: tool for tool in _inferred(calls)}
    _write(folder, splits, list((inferred | tools).values()), description)
    return {split: len(splits[split]) for split in SPLITS}


def tools_from(labelled: Path) -> list[Tool]:
    """The functions that the calls of a JSONL file and of the splits beside it speak of, with inferred JSON Schema.

    All splits are read, so that the schema refuses no split's gold. This leaks nothing of test: from it come names of
    functions and arguments and types alone, which a task states to everybody; no value of test stands in the schema,
    and a list of values that test leaves is not written at all.
    """
    errors: list[UserError] = []
    calls = {"labelled": _calls_of(labelled, errors)}
    for split in SPLITS:
        path = labelled.parent / f"{split}.jsonl"
        if path.is_file() and path.resolve() != labelled.resolve():
            calls[split] = calls.get(split, []) + _calls_of(path, errors)
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    if not any(calls.values()):
        raise UserError(f"{labelled} has no calls to infer functions from")
    return _inferred(calls)


def _calls_of(path: Path, errors: list[UserError]) -> list[Call]:
    calls: list[Call] = []
    for number, row in enumerate(read_rows(path), 1):
        try:
            calls += [Call.from_json(call) for call in row.get("calls") or ()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            errors.append(UserError(f"{path}: row {number}: a call cannot be read: {error}"))
    return calls


def _inferred(calls: Mapping[str, Sequence[Call]]) -> list[Tool]:
    learned = [call for split in calls if split != "test" for call in calls[split]]
    return infer_tools(learned, calls.get("test", ()))


def infer_tools(calls: Iterable[Call], hidden: Iterable[Call] = ()) -> list[Tool]:
    """One tool per function name, in alphabetical order; an argument that all calls have is required.

    Calls in `hidden` (those of test) widen the schema by names and types; their values are not written.
    """
    by_name: dict[str, tuple[list[Any], list[Any]]] = {}
    for place, group in enumerate((calls, hidden)):
        for call in group:
            if not isinstance(call.arguments, Mapping):
                raise UserError(f"arguments of a call of {call.tool!r} are no JSON object: {call.arguments!r}")
            by_name.setdefault(call.tool, ([], []))[place].append(call.arguments)
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


def _row_of_log(log: Mapping[str, Any]) -> dict[str, Any]:
    messages = log.get("messages")
    if not isinstance(messages, list):
        raise ValueError("has no messages")
    if "tool_calls" in log:  # the answer stands beside the messages
        messages = [*messages, {"role": "assistant", "tool_calls": log["tool_calls"]}]
    asked = [n for n, message in enumerate(messages) if message.get("role") == "user"]
    turns = ((u, n) for u in reversed(asked) for n in range(u + 1, len(messages)))
    place = next((n for _, n in turns if messages[n].get("role") == "assistant"), None)
    if place is None:
        raise ValueError("has no assistant's message after a user's and no tool_calls, so no answer")
    request, answer = messages[:place], messages[place]
    called = [*(answer.get("tool_calls") or ()), *filter(None, [answer.get("function_call")])]  # the older spelling
    calls = [Call.from_json(call).to_json() for call in called]
    if not calls and answer.get("content") is None and "tool_calls" not in answer:
        raise ValueError("has an assistant's message without words and calls")
    row: dict[str, Any] = {"messages": request, "calls": calls}
    if not calls and answer.get("content"):
        row["text_answer"] = said(answer)
    return row


def _taken_out(rows: Iterable[dict[str, Any]]) -> str:
    """Takes the system message that all rows begin with out of them, and gives its text; empty where there is none.

    It says what the task is: the teacher is told once, and the student, which learns it, never.
    """
    rows = list(rows)
    firsts = {json.dumps(row["messages"][0], sort_keys=True) for row in rows}
    if len(firsts) != 1 or rows[0]["messages"][0].get("role") not in ("system", "developer"):
        return ""
    description = said(rows[0]["messages"][0])
    for row in rows:
        row["messages"] = row["messages"][1:]
    return description


def _split(rows: list[dict[str, Any]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows shared out by SHARES within each set of functions, so that every split knows the frequent ones."""
    rng = random.Random(seed)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: hash_of(row["messages"])):
        kinds.setdefault(",".join(sorted(call["name"] for call in row["calls"])), []).append(row)
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    total = 0
    for kind in sorted(kinds, key=lambda kind: -len(kinds[kind])):
        rng.shuffle(kinds[kind])
        for row in kinds[kind]:  # to the split that is farthest behind its share
            total += 1
            behind = {split: SHARES[split] * total - len(splits[split]) for split in SPLITS}
            splits[max(SPLITS, key=lambda split: behind[split])].append(row)
    return splits


def _without_leaks(splits: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Moves what is nearly the same as rows that are learned from to the pool, and twins of valid rows out of test."""
    ways = (
        ("valid", ("labelled", "unlabelled"), "unlabelled"),
        ("test", ("labelled", "unlabelled"), "unlabelled"),
        ("test", ("valid",), "valid"),
    )
    changed = True
    while changed:  # ends: rows move towards the pool alone
        changed = False
        for asked, against, to in ways:
            learned = {f"{s}:{n}": asked_text(r["messages"]) for s in against for n, r in enumerate(splits[s])}
            texts = {str(n): asked_text(row["messages"]) for n, row in enumerate(splits[asked])}
            moved = {int(leak.left) for leak in find_leaks(texts, learned)}
            splits[to] += [row for n, row in enumerate(splits[asked]) if n in moved]
            splits[asked] = [row for n, row in enumerate(splits[asked]) if n not in moved]
            changed = changed or bool(moved)
    for split in SPLITS:
        if not splits[split]:
            raise UserError(f"the requests are too alike: nothing is left for {split!r}", "bring more varied logs")
    return splits


def _write(
    folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], tools: Sequence[Tool], description: str
) -> None:
    write_json(folder / "tools.json", [tool.to_openai() for tool in tools])
    for split in SPLITS:
        write_rows(folder / f"{split}.jsonl", splits[split])
    card = {"name": folder.resolve().name} | ({"description": description} if description else {})
    write_text(folder / "task.yaml", yaml.safe_dump(card, sort_keys=False, allow_unicode=True))


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty", "name a new folder")
