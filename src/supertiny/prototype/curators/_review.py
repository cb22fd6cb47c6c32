"""The file that a person fills in: questions out, decisions back. What was filled in is never overwritten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, UserErrors, nearest_word
from supertiny.core.files import hash_of, read_rows, write_rows
from supertiny.core.leaks import asked_text
from supertiny.core.records import Answer, Call, Example, Request

DECISIONS = ("accepted", "corrected", "dropped")
_CALLS = 'write [{"name": ..., "arguments": {...}}]'


@dataclass(frozen=True)
class Decision:
    """What a person said of a row; `answer` is what then holds, None where the row is dropped."""

    decision: str
    answer: Answer | None
    line: Mapping[str, Any]
    """As it stands in the file."""


Key = tuple[str, str]
"""Id and words of a request: an id alone is not the same request."""


def key_of(request: Request) -> Key:
    return request.id, hash_of([dict(message) for message in request.messages])[:12]


def read_decisions(path: Path) -> dict[Key, Decision]:
    """The filled-in lines of a file; none where there is no file.

    Raises UserError, or UserErrors with every line that is filled in wrongly, and its place.
    """
    made: dict[Key, Decision] = {}
    errors = []
    for number, line in enumerate(read_rows(path) if path.is_file() else (), 1):
        try:
            decision = str(line.get("decision") or "").strip().casefold()
            if decision:
                made[str(line.get("id")), str(line.get("request_hash"))] = Decision(
                    decision, _answer(decision, line), line
                )
            elif line.get("correction") not in (None, ""):
                raise UserError("there is a correction and no decision", "write corrected into `decision`")
        except UserError as error:
            errors.append(UserError(f"{path}: row {number}: {error.problem}", error.hint))
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    return made


def write_questions(path: Path, waiting: Sequence[tuple[Example, str]], decided: Mapping[Key, Decision]) -> None:
    """Writes a line for each row that waits, and why; decided lines stay as they are.

    A file that says it already is left alone, and where there is nothing to say, none is made.
    """
    lines = [*(dict(one.line) for one in decided.values()), *(_line(row, why) for row, why in waiting)]
    if lines != (read_rows(path) if path.is_file() else []):
        write_rows(path, lines)


def _line(row: Example, why: str) -> dict[str, Any]:
    answer = row.answer or Answer()
    id, request_hash = key_of(row.request)
    return {
        "id": id,
        "text": asked_text(row.request.messages),
        "calls": [call.to_json() for call in answer.calls],
        "text_answer": answer.text,
        "why": why,
        "decision": "",
        "correction": None,
        "request_hash": request_hash,
    }


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
    if isinstance(correction, str):
        if not correction.lstrip().startswith(("[", "{")):
            return Answer((), correction)  # words alone are the answer's text
        try:
            correction = json.loads(correction)
        except ValueError as error:
            raise UserError(f"not JSON: {error}", _CALLS) from None
    return Answer(_calls(correction))


def _calls(value: Any) -> tuple[Call, ...]:
    listed = [value] if isinstance(value, Mapping) else value
    try:
        calls = tuple(Call.from_json(call) for call in listed or ())
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"not a list of calls: {value!r}", _CALLS) from None
    if not all(isinstance(call.arguments, Mapping) for call in calls):
        raise UserError(f"arguments must be an object: {value!r}", _CALLS)
    return calls
