"""A task folder from a table: one column is what a user says, another its label, arguments, or calls as JSON.

Every task is a function call: a label column becomes `classify(label)`, argument columns become `extract(...)`, and a
column of calls is taken as it is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supertiny.core.chat_logs import read_tools
from supertiny.core.errors import UserError, UserErrors
from supertiny.core.records import Call, Tool
from supertiny.core.tables import Table
from supertiny.core.task_import import new_from_chats, told
from supertiny.core.task_rows import SPLITS
from supertiny.core.task_splits import TaskRow, check_free, shared_out, write_task
from supertiny.core.tool_inference import inferred_tools
from supertiny.core.verifying import schema_problem

TEXT, LABEL, CALLS, TOOLS, CHATS = "text", "label", "calls", "tools", ("messages", "conversations")
CLASSIFY, EXTRACT = "classify", "extract"
_SHOWN = 20  # mistakes that are told one by one
_FEW_LABELS, _ROWS_PER_LABEL = 20, 2.0  # more labels than that, and fewer rows for each, are no classes
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_CLASSIFICATION = "Say which of the labels the user's text has: call classify with this label."


@dataclass(frozen=True)
class Columns:
    """Which columns are what. Where nothing is said, columns that are named so: text, and calls or label."""

    text: str = ""
    label: str = ""
    arguments: tuple[str, ...] = ()
    calls: str = ""
    function: str = ""
    """Name of the one function of labels or arguments; `classify` or `extract` where it is empty."""


def new_from_table(
    table: Table,
    columns: Columns,
    folder: Path,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    skip_broken: bool = False,
    test: Table | None = None,
) -> dict[str, int]:
    """Writes the task; gives the rows per split. Rows are shared out as those of chat logs are.

    Raises UserErrors with the place of every row that cannot be read, and the nearest word for a missing column.
    `skip_broken` leaves rows out whose text is empty, or whose answer cannot be read or is refused by its own tools.
    Rows of `test` are the task's test where they are given, and rows that are nearly the same stand in no other split.
    """
    check_free(folder)
    if columns == Columns() and TEXT not in table.columns:
        chats = next((name for name in CHATS if name in table.columns), None)
        if chats and test is not None:
            raise UserError(f"{table.source}: conversations have no test of their own", "leave --test-split out")
        if chats:
            return new_from_chats(table.rows, table.source, folder, seed, sizes)
    columns = _filled(columns, table)
    if test is not None:
        _filled(columns, test)
    reading = _Reading(table, columns, skip_broken, test)
    if columns.label:
        return _classification(reading, folder, seed, sizes)
    rows, hidden = reading.rows(_arguments if columns.arguments else _called)
    whole = rows + hidden
    tools = {tool.name: tool for row in reversed(whole) for tool in map(Tool.from_openai, row.get(TOOLS, ()))}
    if all(row.get(TOOLS) == whole[0].get(TOOLS) for row in whole):  # the task's tools say it already
        for row in whole:
            row.pop(TOOLS, None)
    splits = shared_out(rows, seed, table.source, sizes, test=hidden)
    calls = {split: [Call.from_json(c) for row in splits[split] for c in row["calls"]] for split in SPLITS}
    if not any(calls.values()):
        raise UserError(f"{table.source} has no calls", "a task needs rows that call a function")
    return write_task(folder, splits, list(({tool.name: tool for tool in inferred_tools(calls)} | tools).values()))


def _filled(columns: Columns, table: Table) -> Columns:
    """The columns with what is not said filled in. Raises UserErrors with every column that is not there."""
    errors: list[UserError] = []
    given = [("--label", columns.label), ("--calls", columns.calls), *(("--argument", a) for a in columns.arguments)]
    kinds = [bool(columns.label), bool(columns.calls), bool(columns.arguments)]
    if sum(kinds) > 1:
        errors.append(UserError("--label, --argument and --calls do not go together", "say one: what an answer is"))
    for option, name in [("--text", columns.text or TEXT), *given]:
        try:
            if name:
                table.column(name, option)
        except UserError as error:
            errors.append(error)
    if not any(kinds):
        found = next((name for name in (CALLS, LABEL) if name in table.columns), None)
        if found is None:
            hint = "say --label, --argument or --calls; its columns: " + ", ".join(table.columns)
            errors.append(UserError(f"{table.source}: which column is the answer?", hint))
        elif found == CALLS:
            columns = replace(columns, calls=CALLS)
        else:
            columns = replace(columns, label=LABEL)
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    return replace(columns, text=columns.text or TEXT)


class _Reading:
    """A table's rows turned into a task's."""

    def __init__(self, table: Table, columns: Columns, skip_broken: bool, test: Table | None = None) -> None:
        self.table = table
        self.columns = columns
        self._test = test
        self._skip_broken = skip_broken
        cells = {name: _texts(name, table, test) for name in columns.arguments} if not table.typed else {}
        self.readers = {name: _reader(texts) for name, texts in cells.items()}

    def rows(self, answer_of: _AnswerOf) -> tuple[list[TaskRow], list[TaskRow]]:
        """The rows, and those of test. Raises UserErrors with the place of every row without a text or an answer."""
        errors: list[UserError] = []
        rows: list[TaskRow] = []
        hidden: list[TaskRow] = []
        for table, read in ((self.table, rows), (self._test, hidden)):
            for place, row in zip(table.places, table.rows, strict=True) if table else ():
                text = row.get(self.columns.text)
                if not isinstance(text, str) or not text.strip():
                    errors.append(UserError(f"{place}: the column {self.columns.text!r} is empty"))
                    continue
                try:
                    read.append({"text": text, **answer_of(self, row)})
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    errors.append(UserError(f"{place}: {told(error)}"))
        if errors and not self._skip_broken:
            last = UserError(f"{self.table.source}: {len(errors)} broken rows in all", "--skip-broken leaves them out")
            raise UserErrors([*errors[:_SHOWN], last])
        return rows, hidden


_AnswerOf = Callable[[_Reading, Mapping[str, Any]], dict[str, Any]]
"""A table's row in, what the task's row holds beside its text out."""


def _classification(reading: _Reading, folder: Path, seed: int, sizes: Mapping[str, int] | None) -> dict[str, int]:
    """One function with the list of labels; every split gets rows of every label that has enough."""
    source, column = reading.table.source, reading.columns.label
    function = reading.columns.function or CLASSIFY
    names = reading.table.labels.get(column)

    def label_of(row: Mapping[str, Any]) -> str:
        value = row.get(column)
        if names and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
            value = names[value]
        if value is None or isinstance(value, list | dict) or not str(value).strip():
            raise ValueError(f"the column {column!r} holds no label: {value!r}")
        return str(value).strip()

    def labelled(_: _Reading, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"calls": [Call(function, {"label": label_of(row)}).to_json()]}

    rows, hidden = reading.rows(labelled)
    counts = Counter(map(_label, rows + hidden))
    if len(counts) > _FEW_LABELS and len(rows) < _ROWS_PER_LABEL * len(counts):
        hint = f"where each row has its own value, say --argument {column}"
        raise UserError(f"{source}: {len(counts)} labels in {len(rows)} rows are no classes", hint)
    if len(counts) == 1:
        raise UserError(f"{source}: every row has the label {next(iter(counts))!r}", "a task needs two or more")
    splits = shared_out(rows, seed, source, sizes, _label, hidden)
    # The list of labels is the task's statement, not a value out of its test: it names all of them.
    label = {"type": "string", "enum": sorted(counts), "description": "The label that the text has."}
    parameters = {"type": "object", "properties": {"label": label}, "required": ["label"]}
    tool = Tool(function, "Give the text its label.", {**parameters, "additionalProperties": False})
    return write_task(folder, splits, [tool], _CLASSIFICATION.replace(CLASSIFY, function))


def _texts(name: str, *tables: Table | None) -> list[str]:
    """The cells of a column, all as text; empty where there is none."""
    cells = (row.get(name) for table in tables if table for row in table.rows)
    return ["" if cell is None else str(cell) for cell in cells]


def _label(row: TaskRow) -> str:
    return str(row["calls"][0]["arguments"]["label"])


def _arguments(reading: _Reading, row: Mapping[str, Any]) -> dict[str, Any]:
    """A call out of argument columns; an empty cell is an argument that is not there, and all empty is no call."""
    cells = {name: row.get(name) for name in reading.columns.arguments}
    there = {name: cell for name, cell in cells.items() if cell is not None and cell != ""}
    if not reading.table.typed:
        there = {name: reading.readers[name](str(cell)) for name, cell in there.items()}
    return {"calls": [Call(reading.columns.function or EXTRACT, there).to_json()] if there else []}


def _called(reading: _Reading, row: Mapping[str, Any]) -> dict[str, Any]:
    """Calls as they stand in a column, and the row's own tools where there is a column of them."""
    calls = _calls(row[reading.columns.calls])
    if TOOLS not in reading.table.columns:
        return {"calls": calls}
    tools = read_tools(row.get(TOOLS))
    known = {tool.name: tool for tool in tools}
    problem = next(filter(None, (schema_problem(Call.from_json(call), known) for call in calls)), "")
    if problem and known:
        raise ValueError(problem)
    return {"calls": calls, TOOLS: [tool.to_openai() for tool in tools]}


def _reader(cells: Sequence[str]) -> Callable[[str], Any]:
    """How a column of text is read: as numbers, truth values or JSON where every cell is one, else as text."""
    filled = [cell for cell in cells if cell]
    for read in (_whole, _decimal, _truth, _structure):
        try:
            for cell in filled:
                read(cell)
        except ValueError:
            continue
        return read if filled else str
    return str


def _whole(cell: str) -> int:
    number = int(cell)
    if str(number) != cell:  # 007 and +49 are codes, not numbers
        raise ValueError(cell)
    return number


def _decimal(cell: str) -> float:
    if not _DECIMAL.fullmatch(cell):
        raise ValueError(cell)
    return float(cell)


def _truth(cell: str) -> bool:
    if cell.lower() not in ("true", "false"):
        raise ValueError(cell)
    return cell.lower() == "true"


def _structure(cell: str) -> Any:
    if cell[:1] not in ("[", "{"):
        raise ValueError(cell)
    return json.loads(cell)


def _calls(value: Any) -> list[dict[str, Any]]:
    """Calls as JSON text or as they are: a list, one call, or nothing where no function serves."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"the calls are broken JSON: {error.msg} at column {error.colno}") from None
    listed = [value] if isinstance(value, Mapping) else value or []
    if not isinstance(listed, list):
        raise ValueError(f"calls must be a list; found {value!r}")
    try:
        return [Call.from_json(call).to_json() for call in listed]
    except KeyError:
        raise ValueError('a call must be {"name", "arguments"}') from None
