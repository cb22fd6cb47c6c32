"""What is told of student and teacher before anything is spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supertiny import pipeline
from supertiny.core.errors import UserError
from supertiny.core.methods import validated
from supertiny.transfer.demands import mistakes
from supertiny.transfer.settings import Settings
from tests.small_recipe import SMALLEST, write_recipe


def told(**values: Any) -> list[str]:
    return [str(error) for error in mistakes(validated(Settings, values, "transfer"))]


def wrong(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        validated(Settings, values, "transfer")
    return str(caught.value)


def test_a_teacher_that_is_nowhere_or_unused_is_told(tmp_path: Path) -> None:
    missing = "transfer.teacher: there is no model 'my-teacher.gguf'"
    assert [line.startswith(missing) for line in told(teacher="my-teacher.gguf", learners=["distil"])] == [True]
    unused = "no learner uses transfer.teacher (take one that does, such as distil, or drop it)"
    assert told(teacher=SMALLEST) == [unused]
    assert told(teacher={"method": "llama_cpp", "model": SMALLEST}, learners=["hybrid"]) == [unused]
    for learner in ("distil", "hybrid"):
        assert not told(teacher=SMALLEST, learners=[learner])
    assert not told(teacher=SMALLEST, labelled_only=["distil"])
    file = tmp_path / "my-teacher.gguf"
    file.touch()
    (line,) = told(teacher=str(file), learners=["distil"])
    assert "is a single file" in line
    assert "llama_cpp" in line


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ({"method": "llama_cp", "model": "x"}, "transfer.teacher: engines has no method 'llama_cp'"),
        ({"method": "llama_cpp", "modell": "x"}, "transfer.teacher.llama_cpp: there is no setting 'modell'"),
        ({"method": "llama_cpp", "model": "x.gguf"}, "transfer.teacher.model: there is no model 'x.gguf'"),
        ({"method": "torch", "model": "nowhere"}, "transfer.teacher.model: there is no model 'nowhere'"),
        ({"method": "openai", "model": "m"}, "transfer.teacher: needs log-probabilities of given texts"),
    ],
)
def test_a_teachers_engine_is_checked(teacher: dict[str, str], expected: str, tmp_path: Path) -> None:
    overrides = [f"transfer.teacher={json.dumps(teacher)}", "transfer.learners=[distil]"]
    with pytest.raises(UserError) as caught:
        pipeline.load_recipe(write_recipe(tmp_path), overrides)
    assert expected in str(caught.value)


def test_no_learner_and_a_learner_that_is_no_list_are_told() -> None:
    assert wrong(learners=[]) == "transfer.learners: no learner: the student would stay untaught"
    assert wrong(learners="imitate") == "transfer.learners: must be a list, such as [imitate]; found 'imitate'"


def test_rounding_what_does_not_learn_is_one_line_with_a_remedy() -> None:
    line = wrong(adapter="lora", quantization_aware="q4_0")
    assert line.startswith("transfer: quantization_aware")
    assert line.endswith("(drop one of them)")
    assert "found" not in line
