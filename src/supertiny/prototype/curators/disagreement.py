"""Puts rows on which the votes split before a person, in a file to fill in, and takes the person's word from it.

Use when: somebody can look at some dozens of rows; those on which the teacher is of two minds are worth it most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Answer, Example
from supertiny.core.task import Task
from supertiny.core.verifying import schema_problem
from supertiny.prototype.bench import Trace
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.curators._reasons import is_labelled, left_out
from supertiny.prototype.curators._review import Decision, Question, read_decisions, review_path, write_questions
from supertiny.prototype.steps.plain import Plain


@dataclass(frozen=True)
class Disagreement:
    """Stands before `verified`. Until `decision` says accepted, corrected or dropped, such a row is left out."""

    least_confidence: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of votes below which a person is asked; answers without votes pass."""
    neighbours: Annotated[int, Field(ge=0)] = 0
    """Nearest labelled rows; a person is asked too where none of them calls the answer's functions. 0 asks none."""
    plain: bool = False
    """Whether a person is asked too where one plain prompt leads the same model to other functions: a call a row."""
    place: Literal["run", "task"] = "run"
    """Where the folder `review` with the file stands: in this run's folder, or in the task's for all runs."""
    kind: Literal["jsonl", "csv"] = "jsonl"
    """Kind of the file; CSV opens in a spreadsheet."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("person", "live_teacher") if self.plain else ("person",)

    def model_calls(self, rows: Sequence[Example], calls_per_request: float) -> float:
        """Expected calls."""
        return float(sum(not is_labelled(row) for row in rows)) if self.plain else 0.0

    def curate(self, examples: Sequence[Example], task: Task, seed: int, *, bench: CuratorBench) -> list[Example]:
        path = self.file(task.folder, bench.folder)
        decisions = read_decisions(path)
        undecided = [row for row in examples if not is_labelled(row) and decisions.get(row.request) is None]
        doubts = self._doubts([row for row in undecided if row.answer is not None], task, bench)
        kept: list[Example] = []
        questions = []
        for row in examples:
            said = decisions.get(row.request)
            if said is not None and not is_labelled(row):
                if said.decision == "dropped":
                    left_out(row, "a person dropped it")
                    continue
                kept.append(_decided(row, said, task, path))
                continue
            if row.request.id in doubts:
                questions.append(Question(row, doubts[row.request.id]))
                left_out(row, f"waits for a person: {doubts[row.request.id]}")
            else:
                kept.append(row)
        write_questions(path, questions, decisions)
        return kept

    def file(self, task: Path, run: Path) -> Path:
        """The file that a person fills in."""
        return review_path(task if self.place == "task" else run, self.kind)

    def decided(self, task: Task, run: Path) -> str:
        """Hash of what the person has said so far, empty where nothing: part of the stage's key."""
        return read_decisions(self.file(task.folder, run)).hash

    def _doubts(self, rows: Sequence[Example], task: Task, bench: CuratorBench) -> dict[str, str]:
        """Why a person is asked, by the row's id."""
        found = {}
        for row, near in zip(rows, self._near(rows, task), strict=True):
            confidence = row.answer.confidence if row.answer else None
            if confidence is not None and confidence < self.least_confidence:
                found[row.request.id] = f"only {confidence:.0%} of the votes are for this answer"
            elif near and _functions(row.answer) not in near:
                found[row.request.id] = f"rows like it call {' or '.join(sorted(map(_named, near)))}"
        if self.plain:
            rest = [row for row in rows if row.request.id not in found]
            traces = Plain(format="chat_json").run([Trace(row.request) for row in rest], bench.teacher)
            for row, trace in zip(rest, traces, strict=True):
                other = _functions(Answer(trace.calls or ()))
                if trace.calls is not None and other != _functions(row.answer):
                    found[row.request.id] = f"one plain prompt calls {_named(other)}"
        return found

    def _near(self, rows: Sequence[Example], task: Task) -> list[set[tuple[str, ...]]]:
        """Functions of each row's nearest labelled ones."""
        if not self.neighbours:
            return [set() for _ in rows]
        found = NearestExamples(task.labelled).nearest([row.request.text for row in rows], self.neighbours)
        return [{_functions(task.labelled[place].answer) for place, _ in places} for places in found]


def _functions(answer: Answer | None) -> tuple[str, ...]:
    return tuple(sorted({call.tool for call in answer.calls})) if answer else ()


def _named(functions: Sequence[str]) -> str:
    return " and ".join(functions) or "no function"


def _decided(row: Example, said: Decision, task: Task, path: Path) -> Example:
    """The row with the person's answer. Raises UserError where its calls are none that the functions allow."""
    old, new = row.answer or Answer(), said.answer or Answer()
    own = {tool.name: tool for tool in row.request.tools} or task.tool_map
    problem = next((found for call in new.calls if (found := schema_problem(call, own))), "")
    if problem:
        raise UserError(f"{path}: row {row.request.id}: {problem}", f"it says {said.decision}; write calls that fit")
    by = "person" if said.decision == "corrected" else old.by
    answer = replace(old, calls=new.calls, text=new.text, by=by, confidence=1.0, raw="", readable=True)
    provenance = {**row.provenance, "origin": row.request.id, "made_by": "disagreement", "reviewed": said.decision}
    return replace(row, answer=answer, verdict=task.verify(row.request, new.calls), provenance=provenance)
