"""Task folders from what people have: an example of ours, or a table of texts with answers, or of conversations.

Every task is a function call: a column of labels becomes `classify(label)`, columns of arguments become `extract(...)`,
and a column of calls is taken as it is. Of a conversation, the assistant's message after the last user's is the answer.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, UserErrors, nearest_word
from supertiny.core.files import write_json, write_rows, write_text
from supertiny.core.leaks import SYSTEM_ROLES
from supertiny.core.records import Call, Message, Tool, said
from supertiny.core.tables import SHOWN, Table
from supertiny.core.task_rows import SPLITS
from supertiny.core.task_splits import TaskRow, shared_out
from supertiny.core.task_tools import infer_tools, read_tools
from supertiny.core.verifying import schema_problem

EXAMPLES = Path(__file__).parents[3] / "examples"
TEXT, LABEL, CALLS, TOOLS, CHATS = "text", "label", "calls", "tools", ("messages", "conversations")
OLD_TOOLS = "functions"  # OpenAI's word for them in logs of before tool_calls
# ShareGPT's words for who speaks; OpenAI's own stand for themselves.
_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
_CLASSIFICATION = "Say which of the labels the user's text has: call classify with this label."
_RECIPE = """\
# All that is not said here is at its default; examples/smart_home/recipe.yaml says more, and docs/methods.md all.
name: {name}
task: {task}
seed: 0
"""


@dataclass(frozen=True)
class Columns:
    """Which columns are what. Where nothing is said: `text`, and `calls` or `label`; or else conversations."""

    text: str = ""
    label: str = ""
    arguments: tuple[str, ...] = ()
    calls: str = ""


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
            lines[number] = f"name: {_quoted(line.removeprefix('name: ').replace(example, folder.resolve().name))}"
        elif line.startswith("task: "):
            lines[number] = f"task: {_quoted(folder)}"
    write_text(path, "\n".join(lines))


def new_task(
    table: Table,
    folder: Path,
    columns: Columns = Columns(),
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    skip_broken: bool = False,
    test: Table | None = None,
) -> dict[str, int]:
    """Writes a task's folder, with a recipe; gives the rows per split.

    The same request is taken once, with its first answer, and near-duplicates stay on one side of the splits. Rows of
    `test` are the task's test where they are given, and what is nearly the same as they stands in no other split.
    A system message that all conversations begin with becomes the task's description.
    Functions are those that the rows bring along, and are inferred from the calls where they bring none; they stay
    with their rows where rows bring different ones. A row's provenance says where it came from; what a row of a task
    or run of ours says of itself stays. Raises UserErrors with the place of every row that cannot be read, or whose
    answer its own functions, or those of other rows, refuse, and with the nearest word for a missing column;
    `skip_broken` leaves such rows out.
    """
    _check_free(folder)
    tables = [table] if test is None else [table, test]
    columns = _filled(columns, tables)
    rows, hidden = _rows(tables, columns, skip_broken)
    if columns.label:
        tools = [_classifier(columns.label, rows + hidden, table.source)]
        splits = shared_out(rows, seed, table.source, sizes, _label, hidden)
        return _write(folder, splits, tools, _CLASSIFICATION)
    told = "" if columns.text else _taken_out(rows + hidden)
    brought = _brought(rows + hidden)
    _take_out_shared(rows + hidden)
    splits = shared_out(rows, seed, table.source, sizes, test=hidden)
    calls = {split: [Call.from_json(call) for row in splits[split] for call in row["calls"]] for split in SPLITS}
    if not any(calls.values()):
        raise UserError(f"{table.source} has no calls", "a task needs rows that call a function")
    tools = list(({tool.name: tool for tool in infer_tools(calls)} | brought).values())
    return _write(folder, splits, tools, told)


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty", "name a new folder")


def _write(folder: Path, splits: Mapping[str, list[TaskRow]], tools: list[Tool], told: str = "") -> dict[str, int]:
    name = _quoted(folder.resolve().name)
    write_json(folder / "tools.json", [tool.to_openai() for tool in tools])
    for split in SPLITS:
        write_rows(folder / f"{split}.jsonl", splits[split])
    write_text(folder / "task.yaml", f"name: {name}\n" + (f"description: {_quoted(told)}\n" if told else ""))
    write_text(folder / "recipe.yaml", _RECIPE.format(name=name, task=_quoted(folder)))
    return {split: len(splits[split]) for split in SPLITS}


def _quoted(value: object) -> str:
    """As YAML that reads as this text, whatever it is."""
    return json.dumps(str(value), ensure_ascii=False)


def _filled(columns: Columns, tables: Sequence[Table]) -> Columns:
    """The columns with what is not said filled in; unchanged where rows are conversations.

    Raises UserErrors with every column that is not there.
    """
    known = tables[0].columns
    if columns == Columns() and set(CHATS) & set(known) and not (TEXT in known and {CALLS, LABEL} & set(known)):
        return columns
    kinds = [bool(columns.label), bool(columns.calls), bool(columns.arguments)]
    errors: list[UserError] = []
    if sum(kinds) > 1:
        errors.append(UserError("--label, --argument and --calls do not go together", "say one: what an answer is"))
    columns = replace(columns, text=columns.text or TEXT)
    if not any(kinds) and CALLS in known:
        columns = replace(columns, calls=CALLS)
    elif not any(kinds) and LABEL in known:
        columns = replace(columns, label=LABEL)
    elif not any(kinds):
        hint = "say --label, --argument or --calls; its columns: " + ", ".join(known)
        errors.append(UserError(f"{tables[0].source}: which column is the answer?", hint))
    named = [("text", columns.text), ("label", columns.label), ("calls", columns.calls)]
    for option, name in [*named, *(("argument", argument) for argument in columns.arguments)]:
        for table in tables:
            if name and name not in table.columns:
                hint = nearest_word(name, table.columns)
                errors.append(UserError(f"--{option}: {table.source} has no column {name!r}", hint))
    if errors:
        raise UserErrors(errors)
    return columns


def _rows(tables: Sequence[Table], columns: Columns, skip_broken: bool) -> tuple[list[TaskRow], list[TaskRow]]:
    """The rows of the first table, and of the second, which is test, where there is one."""
    cells = [row for table in tables if not table.typed for row in table.rows]
    as_text = {name: _are_text(row[name] for row in cells) for name in columns.arguments}
    errors: list[UserError] = []
    placed: list[list[tuple[str, TaskRow]]] = []
    for table in tables:
        placed.append([])
        for place, row in zip(table.places, table.rows, strict=True):
            try:
                read = _row_of(row, columns, as_text if not table.typed else None)
                placed[-1].append((place, _of_itself(row, place) | read))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                errors.append(UserError(f"{place}: {_told(error)}"))
    brought = _brought([row for some in placed for _, row in some])
    rows, hidden = (
        [row for place, row in some if _is_allowed(place, row, brought, errors)] for some in [*placed, []][:2]
    )
    if errors and not skip_broken:
        last = UserError(f"{tables[0].source}: {len(errors)} broken rows in all", "--skip-broken leaves them out")
        raise UserErrors([*errors[:SHOWN], last])
    given = Counter(row.get("id") for row in rows + hidden)
    for row in rows + hidden:
        if given[row.get("id")] > 1:
            row.pop("id", None)
    return rows, hidden


def _of_itself(row: Mapping[str, Any], place: str) -> TaskRow:
    """What a row of a task or run of ours says beside its request and calls; and of every row, where it stands."""
    own = row.get("provenance")
    kept = {name: row[name] for name in ("id", "text_answer") if isinstance(row.get(name), str) and row[name]}
    return {**kept, "provenance": {"from": place, **(own if isinstance(own, Mapping) else {})}}


def _is_allowed(place: str, row: TaskRow, brought: Mapping[str, Tool], errors: list[UserError]) -> bool:
    """Whether the functions that other rows bring along allow the calls of a row that brings none; told if not."""
    calls = [Call.from_json(call) for call in row["calls"] if TOOLS not in row and call["name"] in brought]
    problem = next(filter(None, (schema_problem(call, brought) for call in calls)), "")
    if problem:
        errors.append(UserError(f"{place}: {problem}"))
    return not problem


def _told(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON within: {error}"
    return f"has no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)


def _row_of(row: Mapping[str, Any], columns: Columns, as_text: Mapping[str, bool] | None) -> TaskRow:
    """A task's row of a table's; `as_text` says of the argument columns of a table of text which stay text.

    Raises KeyError, TypeError, ValueError or AttributeError where it cannot be read.
    """
    if not columns.text:
        return _with_tools(_conversation(row), row.get(TOOLS) or row.get(OLD_TOOLS))
    text = row.get(columns.text)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the column {columns.text!r} holds no text: {text!r}")
    if columns.calls:
        return _with_tools({"text": text, "calls": _calls(row.get(columns.calls))}, row.get(TOOLS))
    if columns.label:
        label = row.get(columns.label)
        if label is None or isinstance(label, list | dict) or not str(label).strip():
            raise ValueError(f"the column {columns.label!r} holds no label: {label!r}")
        return {"text": text, "calls": [Call("classify", {"label": str(label).strip()}).to_json()]}
    # An empty cell is an argument that is not there, and where all are empty nothing is called.
    there = {name: row[name] for name in columns.arguments if row.get(name) not in (None, "")}
    if as_text is not None:
        there = {name: cell if as_text[name] else _value(cell) for name, cell in there.items()}
    return {"text": text, "calls": [Call("extract", there).to_json()] if there else []}


def _are_text(cells: Iterable[str]) -> bool:
    """Whether a column of a table of text is text: else every cell is a number, a truth value, a list or an object."""
    try:
        for cell in filter(None, cells):
            _value(cell)
    except ValueError:
        return True
    return False


def _value(cell: str) -> Any:
    """A cell by JSON's rules, so that 007, +49 and NaN are no numbers. Raises ValueError where it is text."""
    return json.loads(cell.lower() if cell in ("True", "TRUE", "False", "FALSE") else cell, parse_constant=int)


def _calls(value: Any) -> list[dict[str, Any]]:
    """Calls as JSON text or as they are: a list, one call, or nothing where no function serves."""
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else []
    listed = [value] if isinstance(value, Mapping) else value or []
    if not isinstance(listed, list):
        raise ValueError(f"calls must be a list; found {value!r}")
    return [Call.from_json(call).to_json() for call in listed]


def _with_tools(written: TaskRow, given: Any) -> TaskRow:
    """A task's row with the functions that the table's row brings along, which must allow its calls."""
    tools = read_tools(given)
    known = {tool.name: tool for tool in tools}
    for call in written["calls"] if known else ():
        problem = schema_problem(Call.from_json(call), known)
        if problem:
            raise ValueError(problem)
    return written | ({TOOLS: [tool.to_openai() for tool in tools]} if tools else {})


def _conversation(row: Mapping[str, Any]) -> TaskRow:
    """`messages`, `calls` and, where it calls nothing, `text_answer` of OpenAI's `messages` or ShareGPT's turns.

    What stood before the answer is the request; of a row of ours, whose calls stand beside them, all messages are.
    """
    messages = row.get("messages")
    if messages is None and isinstance(row.get("conversations"), list):
        system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        messages = system + [_of_sharegpt(turn) for turn in row["conversations"]]
    if not isinstance(messages, list):
        raise ValueError("has no messages")
    if row.get("tool_calls") is not None or isinstance(row.get("function_call"), Mapping):
        beside = {key: row.get(key) for key in ("tool_calls", "function_call")}  # the answer beside the messages
        messages = [*messages, {"role": "assistant", "content": "", **beside}]
    messages = _with_tool_calls(messages)
    if isinstance(row.get(CALLS), list) and messages and messages[-1]["role"] != "assistant":
        by = row.get("answer")
        if isinstance(by, Mapping) and not by.get("readable", True):
            raise ValueError("its answer could not be read by whoever asked for it")
        return {"messages": messages, "calls": _calls(row[CALLS])}
    roles = [message["role"] for message in messages]
    asked = max((n for n, role in enumerate(roles) if role == "user" and "assistant" in roles[n:]), default=None)
    if asked is None:
        raise ValueError("has no assistant's message after a user's and no tool_calls, so no answer")
    place = roles.index("assistant", asked)
    answer = messages[place]
    calls = [Call.from_json(call).to_json() for call in answer.get("tool_calls") or ()]
    words = said(answer) or str(answer.get("refusal") or "")
    if not calls and not words and answer.get("content") is None:
        raise ValueError("the assistant's answer has neither content nor calls")
    written: TaskRow = {"messages": messages[:place], "calls": calls}
    return written if calls or not words else {**written, "text_answer": words}


def _with_tool_calls(messages: Sequence[Message]) -> list[Message]:
    """Messages of before tool_calls in today's words: `function_call`, and the role `function` for its result."""
    written: list[Message] = []
    last = ""
    for number, message in enumerate(messages):
        call = message.get("function_call")
        if isinstance(call, Mapping):
            last = f"call{number:05}"
            rest = {key: value for key, value in message.items() if key not in ("function_call", "tool_calls")}
            message = {**rest, "tool_calls": [{"id": last, "type": "function", "function": dict(call)}]}
        elif message.get("role") == "function":
            message = {**message, "role": "tool", "tool_call_id": last}
        written.append(message)
    return written


def _taken_out(rows: Sequence[TaskRow]) -> str:
    """Takes the system message that all rows begin with out of them, and gives its text; empty where there is none.

    It says what the task is: the teacher is told once, and the student, which learns it, never.
    """
    firsts = {json.dumps(row["messages"][0], sort_keys=True) for row in rows}
    if len(firsts) != 1 or rows[0]["messages"][0]["role"] not in SYSTEM_ROLES:
        return ""
    description = said(rows[0]["messages"][0])
    for row in rows:
        row["messages"] = row["messages"][1:]
    return description


def _of_sharegpt(turn: Mapping[str, Any]) -> Message:
    speaker, value = turn["from"], turn["value"]
    if speaker != "function_call":
        return {"role": _ROLES.get(speaker, speaker), "content": value}
    calls = [{"type": "function", "function": call} for call in _calls(value)]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _brought(rows: Sequence[TaskRow]) -> dict[str, Tool]:
    """The functions that rows bring along, by name; of several with one name the first."""
    return {tool.name: tool for row in reversed(rows) for tool in map(Tool.from_openai, row.get(TOOLS, ()))}


def _take_out_shared(rows: Sequence[TaskRow]) -> None:
    """Takes the functions out of the rows where all bring the same, in whatever order: they are the task's then."""
    own = [{tool["function"]["name"]: tool for tool in row.get(TOOLS, ())} for row in rows]
    if all(tools == own[0] for tools in own):
        for row in rows:
            row.pop(TOOLS, None)


def _classifier(column: str, rows: Sequence[TaskRow], source: str) -> Tool:
    """One function with the list of all labels, which is the task's statement and no value out of its test."""
    counts = Counter(map(_label, rows))
    if not 2 <= len(counts) <= len(rows) / 2:
        hint = f"two classes or more, of several rows each; a value of each row's own is --argument {column}"
        raise UserError(f"{source}: {len(counts)} different labels in {len(rows)} rows", hint)
    label = {"type": "string", "enum": sorted(counts), "description": "The label that the text has."}
    parameters = {"type": "object", "properties": {"label": label}, "required": ["label"]}
    return Tool("classify", "Give the text its label.", {**parameters, "additionalProperties": False})


def _label(row: TaskRow) -> str:
    return str(row["calls"][0]["arguments"]["label"])
