"""The cards of students and artifacts: what they say, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from supertiny.core.artifact import Artifact
from supertiny.core.errors import UserError
from supertiny.core.student import Student
from tests.tiny_student import write_student


def test_a_student_is_read_back_and_counts_its_weights(tmp_path: Path) -> None:
    student = Student(write_student(tmp_path), {"method": "compact"}, "лампа", 7)
    student.save_card()
    assert Student.open(tmp_path) == student
    weights = load_file(tmp_path / "model.safetensors")
    assert student.parameters == sum(tensor.numel() for tensor in weights.values())
    assert student.bytes == (tmp_path / "model.safetensors").stat().st_size


def test_a_folder_without_weights_or_with_a_broken_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        Student.open(tmp_path)
    Student(tmp_path, "compact", "tiny", 7).save_card()
    with pytest.raises(UserError, match="no safetensors"):
        Student.open(tmp_path)
    (tmp_path / "supertiny.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="no card of a student"):
        Student.open(tmp_path)


@pytest.mark.parametrize("length", [4, 20])
def test_cut_weights_are_refused(tmp_path: Path, length: int) -> None:
    student = Student(write_student(tmp_path), "compact", "tiny", 7)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="no whole safetensors"):
        _ = student.parameters


def test_an_artifact_with_another_card_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    artifact = Artifact.of(tmp_path, "compact", "f16", 12, "tiny")
    artifact.save_card()
    assert Artifact.open(tmp_path).source == "tiny"
    (tmp_path / "artifact.json").write_text(json.dumps({"type": "f16"}), encoding="utf-8")
    with pytest.raises(UserError, match="no card of an artifact"):
        Artifact.open(tmp_path)
    artifact.save_card()
    (tmp_path / "model.gguf").unlink()
    with pytest.raises(UserError, match="is not there"):
        Artifact.open(tmp_path)
