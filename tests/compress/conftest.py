"""Fixtures of the stage's tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny.compress.examining import Room
from supertiny.core.files import write_rows
from supertiny.core.ledger import Ledger
from supertiny.core.progress import Progress
from supertiny.core.records import Answer
from supertiny.core.run import Run
from supertiny.core.student import Student
from tests.small_run import Gate, add_merge
from tests.small_task import examples, small_task
from tests.tiny_student import write_student


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = tmp_path / "run"
    student = write_student(folder / "transfer" / "student")
    add_merge(student)
    Student(student, "compact", "tiny", 3).save_card()
    write_rows(folder / "prototype" / "train.jsonl", [row.to_json() for row in examples("labelled")])
    task = replace(small_task(), valid=examples("valid", 4))
    recipe: Any = type("Recipe", (), {"seed": 3})()
    return Run(folder, recipe, task, Ledger(folder / "ledger.sqlite"), Progress(quiet=True))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    class Engine:
        def __init__(self, block: Any) -> None:
            self.name = block if isinstance(block, str) else block["method"]

        def close(self) -> None:
            pass

    stand_in = Gate(0)
    monkeypatch.setattr(Room, "open", lambda room, block, model: Engine(block))
    monkeypatch.setattr(Room, "examine", lambda room, engine, timed=True: stand_in.examine(room, engine))
    monkeypatch.setattr(Room, "answers", lambda room, engine, requests: [Answer() for _ in requests])
    monkeypatch.setattr(Room, "check_prompts", lambda room, engine, tokenizer: None)
    return stand_in
