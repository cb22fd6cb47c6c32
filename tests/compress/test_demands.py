"""What is told of steps that do not fit the student's shape, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest

from supertiny.compress import demands
from supertiny.compress.demands import mistakes
from tests.tiny_student import write_student


def told(student: Path | str, *steps: Any) -> list[str]:
    return [str(error) for error in mistakes([*steps, "gguf"], str(student))]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


def test_groups_that_do_not_fill_the_rows_are_told(student: Path) -> None:
    (line,) = told(student, {"method": "gptq", "group": 48})
    assert line.startswith("compress.steps.0.gptq: groups of 48 do not fill rows of 64")
    assert "these divide them: 8, 16, 32" in line
    assert not told(student, {"method": "gptq", "group": 32})
    assert not told(student, {"method": "gptq", "group": 0})
    assert not told(student, {"method": "gptq", "group": 48, "grid": "q4_0"})


def test_more_blocks_than_there_are_are_told(student: Path) -> None:
    one, two = {"method": "drop_blocks", "blocks": 1}, {"method": "drop_blocks", "blocks": 2}
    assert told(student, two) == ["compress.steps.0.drop_blocks: cannot drop 2 of 2 blocks (leave at least one)"]
    assert not told(student, one)
    assert [line.partition(":")[0] for line in told(student, one, one)] == ["compress.steps.1.drop_blocks"]


def test_nothing_is_told_of_what_is_not_known(student: Path) -> None:
    wrong = {"method": "gptq", "group": 48}
    assert not told("smollm2-that-nobody-has", wrong)
    assert not told(student, "factorize", wrong), "rows may have another length then"


def test_a_model_of_the_catalogue_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_block_count(30)
    writer.add_embedding_length(576)
    writer.add_feed_forward_length(1536)
    writer.add_head_count(9)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with (tmp_path / "small.gguf").open("ab") as file:
        file.write(bytes(32))  # where tensors would begin
    monkeypatch.setattr(demands, "catalogue", lambda: {"small": None})
    monkeypatch.setattr(demands, "status", lambda name: "unverified")
    monkeypatch.setattr(demands, "store", lambda: tmp_path)
    (line,) = told("small", {"method": "gptq", "group": 128})
    assert "groups of 128 do not fill rows of 576 and 1536" in line
    assert "cannot drop 99 of 30 blocks" in told("small", {"method": "drop_blocks", "blocks": 99})[0]
