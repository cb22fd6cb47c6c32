"""examples -> student: the recipe's learners in order, and the floor taught on the labelled rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.files import read_rows
from supertiny.core.records import Example
from supertiny.core.run import Run
from supertiny.engines._huggingface import huggingface_folder
from supertiny.transfer.settings import Settings
from supertiny.transfer.teaching import Course


def run(settings: Settings, run: Run, folder: Path) -> dict[str, Any]:
    """Teaches `labelled_only/` and `student/`; gives what each learner bought on valid."""
    train = [Example.from_json(row) for row in read_rows(run.folder / "prototype" / "train.jsonl")]
    if not train:
        raise UserError("prototype/train.jsonl is empty: nothing to learn from", "see prototype/pool.jsonl")
    base = huggingface_folder(settings.student, "transfer.student")
    unanswered = _unanswered(run.folder / "prototype", {row.request.id for row in train})
    floor = Course(settings, run, folder, "labelled_only", base).teach(run.task.labelled, settings.labelled_only)
    student = Course(settings, run, folder, "student", base, unanswered).teach(train, settings.learners)
    for scores in folder.glob(".teacher-*"):
        scores.unlink()
    return {"labelled_only": floor, "student": student}


def _unanswered(prototype: Path, known: set[str]) -> list[Example]:
    """Requests whose answer nobody trusted: a student that is nearly right may find it by itself.

    What stands too near to valid or test is not asked either.
    """
    pool, rejected = prototype / "pool.jsonl", prototype / "rejected.jsonl"
    dropped = [Example.from_json(row) for row in read_rows(rejected)] if rejected.exists() else []
    leaks = {row.request.id for row in dropped if row.provenance.get("rejected", {}).get("by") == "leak_guard"}
    rows = [Example.from_json(row) for row in read_rows(pool)] if pool.exists() else []
    return [Example(row.request) for row in rows if row.request.id not in known | leaks]
