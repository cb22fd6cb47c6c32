"""Puts rows on which the votes split before a person, in a file to fill in, and takes the person's word from it.

Use when: a step votes, and somebody can look at some dozens of rows: those that split the votes are worth it most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of
from supertiny.core.records import Answer, Example
from supertiny.core.task import Task
from supertiny.core.verifying import schema_problem
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.curators._reasons import changed_by, is_labelled, left_out
from supertiny.prototype.curators._review import Decision, key_of, read_decisions, write_questions


@dataclass(frozen=True)
class Disagreement:
    """Stands before `verified`. A row that waits is left out until its line in the run's review/disagreement.jsonl
    has the `decision` accepted, corrected (the calls, or words alone, stand in `correction`) or dropped. A second one
    in a recipe has a file of its own, disagreement-2.jsonl.

    What is decided holds for a request with the same id and words, also in another run that the file is copied to.
    """

    least_confidence: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of votes below which a person is asked; answers without votes pass."""

    needs: ClassVar[tuple[str, ...]] = ("person",)

    def curate(self, examples: Sequence[Example], task: Task, seed: int, *, bench: CuratorBench) -> list[Example]:
        path = _file(bench.folder, bench.name)
        decisions = read_decisions(path)
        kept, waiting = [], []
        for row in examples:
            said = None if is_labelled(row) else decisions.get(key_of(row.request))
            if said is not None and said.decision == "dropped":
                left_out(row, "a person dropped it")
            elif said is not None:
                kept.append(_decided(row, said, task, path))
            elif doubt := self._doubt(row):
                left_out(row, f"waits for a person: {doubt}")
                waiting.append((row, doubt))
            else:
                kept.append(row)
        write_questions(path, waiting, decisions)
        return kept

    def decided(self, run: Path, name: str) -> str:
        """Hash of what the person has said so far, empty where nothing: part of the stage's key."""
        lines = [dict(one.line) for one in read_decisions(_file(run, name)).values()]
        return hash_of(lines) if lines else ""

    def _doubt(self, row: Example) -> str:
        """Why a person is asked; nothing where none is."""
        confidence = row.answer.confidence if row.answer and not is_labelled(row) else None
        if confidence is None or confidence >= self.least_confidence:
            return ""
        return f"only {confidence:.0%} of the votes are for this answer"


def _file(run: Path, name: str) -> Path:
    return run / "review" / f"{name.replace(' ', '-')}.jsonl"


def _decided(row: Example, said: Decision, task: Task, path: Path) -> Example:
    """The row with the person's answer. Raises UserError where its calls are none that the functions allow."""
    old, new = row.answer or Answer(), said.answer or Answer()
    own = {tool.name: tool for tool in row.request.tools} or task.tool_map
    problem = next((found for call in new.calls if (found := schema_problem(call, own))), "")
    if problem:
        raise UserError(f"{path}: row {row.request.id}: {problem}", f"it says {said.decision}; write calls that fit")
    by = "person" if said.decision == "corrected" else old.by
    answer = replace(old, calls=new.calls, text=new.text, by=by, confidence=1.0, raw="", readable=True)
    provenance = changed_by("disagreement", row, reviewed=said.decision)
    return replace(row, answer=answer, verdict=task.verify(row.request, new.calls), provenance=provenance)
