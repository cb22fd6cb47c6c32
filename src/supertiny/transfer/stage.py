"""examples -> student: the recipe's learners in order, and the floor taught on the labelled rows alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from supertiny.core.errors import UserError
from supertiny.core.files import read_rows
from supertiny.core.models import catalogue, path_of, store
from supertiny.core.records import Example
from supertiny.core.run import Run
from supertiny.transfer.settings import Settings
from supertiny.transfer.teaching import Course


def run(settings: Settings, run: Run, folder: Path) -> dict[str, Any]:
    """Teaches `labelled_only/` and `student/`; gives what each learner bought on valid."""
    train = [Example.from_json(row) for row in read_rows(run.folder / "prototype" / "train.jsonl")]
    if not train:
        raise UserError("prototype/train.jsonl is empty: nothing to learn from", "see prototype/pool.jsonl")
    base = open_base(settings.student)
    floor = Course(settings, run, folder, "labelled_only", base).teach(run.task.labelled, settings.labelled_only)
    student = Course(settings, run, folder, "student", base).teach(train, settings.learners)
    return {"labelled_only": floor, "student": student}


def open_base(name: str) -> Path:
    """Hugging Face folder of a base student: a folder as it is, or one made once from a model of the catalogue."""
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if name not in catalogue():
        raise UserError(
            f"transfer.student: {name!r} is neither a folder with a config.json nor a known model",
            "see `supertiny models`",
        )
    from supertiny.engines._gguf_to_hf import load_gguf_student

    folder = store() / "huggingface" / f"{name}-{catalogue()[name].sha256[:8]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that want one base: the second waits and finds it there.
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            beside = folder.with_name(f".{folder.name}.part")
            if beside.exists():  # what a killed process left
                shutil.rmtree(beside)
            load_gguf_student(path_of(name), beside)
            beside.rename(folder)
    return folder
