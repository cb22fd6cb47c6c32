"""The file that a person fills in: questions out, decisions back. What was filled in is never overwritten."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, UserErrors, nearest_word
from supertiny.core.files import hash_of, read_rows, write_rows, write_text
from supertiny.core.leaks import asked_text
from supertiny.core.records import Answer, Call, Example, Request

DECISIONS = ("accepted", "corrected", "dropped")
_FIELDS = ("id", "text", "calls", "text_answer", "why", "decision", "correction", "request_hash")
_QUOTED = ("=", "+", "-", "@", "'")  # a spreadsheet would compute a cell that begins so


@dataclass(frozen=True)
class Question:
    """A row that a person should look at, and why."""

    row: Example
    why: str


@dataclass(frozen=True)
class Decision:
    """What a person said of a row; `answer` is what then holds, None where the row is dropped."""

    decision: str
    answer: Answer | None


class Decisions:
    """The filled-in lines of a file, by id and words of the request."""

    def __init__(self, made: Mapping[tuple[str, str], Decision], lines: Sequence[dict[str, Any]]) -> None:
        self._made = made
        self.lines = lines
        """As they stand in the file."""

    def get(self, request: Request) -> Decision | None:
        return self._made.get((request.id, _hash(request)))

    @property
    def hash(self) -> str:
        """Of all that was decided; empty where nothing was."""
        return hash_of([dict(line) for line in self.lines]) if self.lines else ""


def review_path(folder: Path, kind: str) -> Path:
    """The file's place in a folder of a task or a run; in a folder of its own, which no hash of a task covers."""
    return folder / "review" / f"disagreement.{kind}"


def read_decisions(path: Path) -> Decisions:
    """Raises UserErrors with every line that is filled in wrongly, and its place."""
    made: dict[tuple[str, str], Decision] = {}
    lines, errors = [], []
    for place, line in _lines(path):
        decision = str(line.get("decision") or "").strip().casefold()
        try:
            if not decision:
                if line.get("correction") not in (None, ""):
                    raise UserError("there is a correction and no decision", "write corrected into `decision`")
                continue
            made[(str(line.get("id")), str(line.get("request_hash")))] = Decision(decision, _answer(decision, line))
            lines.append(line)
        except UserError as error:
            errors.append(UserError(f"{place}: {error.problem}", error.hint))
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    return Decisions(made, lines)


def write_questions(path: Path, questions: Sequence[Question], decisions: Decisions) -> None:
    """Decided lines stay as they are, open ones are those of `questions`; a file that says it already is left alone."""
    lines = [*decisions.lines, *(_line(question) for question in questions)]
    if lines == [line for _, line in _lines(path)]:
        return
    if path.suffix == ".jsonl":
        write_rows(path, lines)
        return
    table = io.StringIO()
    writer = csv.DictWriter(table, _FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(line.get(name)) for name in _FIELDS} for line in lines)
    write_text(path, "\ufeff" + table.getvalue())  # the mark tells spreadsheets that this is UTF-8


def _line(question: Question) -> dict[str, Any]:
    row, answer = question.row, question.row.answer or Answer()
    said = [row.request.id, asked_text(row.request.messages), [call.to_json() for call in answer.calls], answer.text]
    return dict(zip(_FIELDS, [*said, question.why, "", None, _hash(row.request)], strict=True))


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(place, line) of the file; none where there is no file."""
    if not path.is_file():
        return []
    if path.suffix == ".jsonl":
        return [(f"{path}: row {number}", row) for number, row in enumerate(read_rows(path), 1)]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}", "save it as CSV UTF-8") from None
    first = text.partition("\n")[0]
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=";" if first.count(";") > first.count(",") else ","
    )
    missing = {"id", "decision", "correction", "request_hash"} - set(reader.fieldnames or ())
    if missing:
        raise UserError(f"{path} has no column {', '.join(sorted(missing))}", "its first line must name the columns")
    rows = []
    for number, cells in enumerate(reader, 2):
        place = f"{path}: row {number}"
        rows.append((place, {name: _value(name, cells.get(name) or "", place) for name in _FIELDS}))
    return rows


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "'" + text if text.startswith(_QUOTED) else text


def _value(name: str, cell: str, place: str) -> Any:
    """Inverse of `_cell`. Raises UserError where calls or a correction are no JSON."""
    if cell[:1] == "'" and cell[1:2] in _QUOTED:
        cell = cell[1:]
    if name not in ("calls", "correction"):
        return cell
    if not cell.strip():
        return None if name == "correction" else []
    if name == "correction" and not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        return _json(cell)
    except UserError as error:
        raise UserError(f"{place}: {name}: {error.problem}", error.hint) from None


def _answer(decision: str, line: Mapping[str, Any]) -> Answer | None:
    if decision not in DECISIONS:
        raise UserError(f"there is no decision {decision!r}", nearest_word(decision, DECISIONS))
    if decision == "dropped":
        return None
    if decision == "accepted":
        return Answer(_calls(line.get("calls")), str(line.get("text_answer") or ""))
    correction = line.get("correction")
    if correction is None or correction == "":
        raise UserError("the decision is corrected and there is no correction", "write the calls; [] is no call")
    if isinstance(correction, str) and not correction.lstrip().startswith(("[", "{")):
        return Answer((), correction)  # words alone are the answer's text
    return Answer(_calls(_json(correction) if isinstance(correction, str) else correction))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"not JSON: {error}", 'write [{"name": ..., "arguments": {...}}]') from None


def _calls(value: Any) -> tuple[Call, ...]:
    listed = [value] if isinstance(value, Mapping) else value
    try:
        calls = tuple(Call.from_json(call) for call in listed or ())
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"not a list of calls: {value!r}", 'write [{"name": ..., "arguments": {...}}]') from None
    if not all(isinstance(call.arguments, Mapping) for call in calls):
        raise UserError(f"arguments must be an object: {value!r}", 'write [{"name": ..., "arguments": {...}}]')
    return calls


def _hash(request: Request) -> str:
    return hash_of([dict(message) for message in request.messages])[:12]
