"""The compress stage on a tiny student: what it leaves, what it refuses, and that a kill costs little."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from supertiny.compress import stage
from supertiny.compress.examining import Paper, Room
from supertiny.compress.settings import Settings
from supertiny.core.artifact import Artifact
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, write_rows
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build, validated
from supertiny.core.progress import Progress
from supertiny.core.records import Answer, Call
from supertiny.core.run import Run
from supertiny.core.student import Student
from tests.small_task import examples, small_task
from tests.tiny_student import write_student

STEPS = [{"method": "drop_blocks", "blocks": 1}, {"method": "gguf", "type": "q8_0"}]


def add_merge(folder: Path) -> None:
    """GGUF knows no tokenizer without merges."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["th"] = model.config.vocab_size
    tokenizer["model"]["merges"] = [["t", "h"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    model.resize_token_embeddings(model.config.vocab_size + 1)
    model.save_pretrained(folder)


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


def settings(steps: list[Any] = STEPS, **more: Any) -> Settings:
    small = {"calibration_rows": 4, "recovery": {"method": "distil", "passes": 1, "rows": 8}, "max_tokens": 8}
    engine = {"method": "openvino", "precision": "float32", "cache_gigabytes": 1}
    read: Settings = validated(Settings, {"steps": steps, "engine": engine, **small, **more}, "compress")
    return read


def work(run: Run, chosen: Settings) -> tuple[dict[str, Any], Path]:
    folder = run.folder / ".compress"
    folder.mkdir(exist_ok=True)
    return stage.run(chosen, run, folder), folder


@pytest.mark.slow
def test_it_leaves_a_stock_student_an_artifact_and_the_steps(run: Run) -> None:
    summary, folder = work(run, settings())
    assert sorted(path.name for path in folder.iterdir()) == ["artifact", "steps.json", "student"]
    small, whole = Student.open(folder / "student"), Student.open(run.folder / "transfer" / "student")
    assert AutoModelForCausalLM.from_pretrained(small.folder).config.num_hidden_layers == 1
    assert (small.format, small.base) == ("compact", "tiny")
    artifact = Artifact.open(folder / "artifact")
    assert artifact.type == summary["type"] == "q8_0"
    assert artifact.parameters == small.parameters < whole.parameters
    assert summary["agreement"] == 1.0
    steps = read_json(folder / "steps.json")
    assert [step["name"] for step in steps] == ["student", "drop_blocks (blocks 1)", "gguf (type q8_0)"]
    assert [step["parameters"] for step in steps] == [whole.parameters, small.parameters, small.parameters]
    assert steps[0]["bytes"] > steps[1]["bytes"] > 0
    assert steps[2]["bytes"] == artifact.bytes
    before = AutoModelForCausalLM.from_pretrained(whole.folder, dtype=torch.bfloat16).get_input_embeddings().weight
    after = AutoModelForCausalLM.from_pretrained(small.folder, dtype=torch.bfloat16).get_input_embeddings().weight
    assert not torch.equal(before, after), "the recovery taught nothing"
    for step in steps:
        assert step["n"] == 4
        assert step["low"] <= step["exact"] <= step["high"]


class Gate:
    """Stands for the engines: gold from the student, a wrong first row from artifacts until a type is right."""

    def __init__(self, wrong_until: int) -> None:
        self.left = wrong_until

    def examine(self, room: Room, engine: Any) -> Paper:
        answers = [row.answer or Answer() for row in room.task.valid]
        if engine.name == "openvino" and self.left:
            self.left -= 1
            answers[0] = Answer((Call("Wrong"),))
        figures = {"exact": 1.0, "low": 0.5, "high": 1.0, "n": len(answers), "p50_seconds": 0.1}
        return Paper(tuple(answers), figures)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    class Engine:
        def __init__(self, block: Any) -> None:
            self.name = block if isinstance(block, str) else block["method"]

        def close(self) -> None:
            pass

    stand_in = Gate(0)
    monkeypatch.setattr(Room, "open", lambda room, block, model: Engine(block))
    monkeypatch.setattr(Room, "examine", lambda room, engine: stand_in.examine(room, engine))
    monkeypatch.setattr(Room, "check_prompts", lambda room, engine, tokenizer: None)
    return stand_in


def test_without_shrinking_nothing_is_taught(run: Run, gate: Gate) -> None:
    summary, folder = work(run, settings(["keep", {"method": "gguf", "type": "f16"}]))
    before = AutoModelForCausalLM.from_pretrained(run.folder / "transfer" / "student", dtype=torch.bfloat16)
    after = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.bfloat16)
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)
    assert summary["steps"] == 2


def test_after_a_kill_finished_steps_are_not_done_again(run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage._Work, "_export", killed)
        with pytest.raises(KeyboardInterrupt):
            work(run, settings())
    monkeypatch.setattr(stage._Work, "_reshape", killed)
    summary, folder = work(run, settings())
    assert summary["agreement"] == 1.0
    assert [path.name for path in folder.glob(".*")] == []


def test_a_type_that_misses_parity_gives_way_to_the_next(run: Run, gate: Gate) -> None:
    # The first paper on openvino is that of the student itself, before any step.
    gate.left = 3
    summary, folder = work(run, settings([{"method": "gguf", "type": "q4_0"}]))
    assert summary["type"] == Artifact.open(folder / "artifact").type == "q8_0"
    assert read_json(folder / "steps.json")[-1]["tried"] == {"q4_0": 0.75, "q4_1": 0.75, "q8_0": 1.0}


@pytest.mark.parametrize("steps", [[], ["keep"]])
def test_what_nothing_cut_is_exported_as_it_is(steps: list[Any], run: Run, gate: Gate) -> None:
    place = run.folder / "transfer" / "student"
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1 + 2**-12  # more digits than bfloat16 has
    model.save_pretrained(place)
    _, folder = work(run, settings([*steps, {"method": "gguf", "type": "q4_0"}]))
    names = [step["name"] for step in read_json(folder / "steps.json")]
    # Rounded ahead of the gate, the file would be compared with itself.
    assert names == ["student", *steps, "gguf (type q4_0)"]
    after = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), after.parameters(), strict=True))


def test_rows_answered_otherwise_than_by_the_student_are_counted(run: Run, gate: Gate) -> None:
    gate.left = 1  # the student itself
    _, folder = work(run, settings(["keep", {"method": "gguf", "type": "f16"}]))
    shares = [step["same_as_student"] for step in read_json(folder / "steps.json")]
    assert shares == [1.0, 0.75, 0.75]


def test_where_no_type_holds_parity_the_rows_are_named(run: Run, gate: Gate) -> None:
    gate.left = 99
    with pytest.raises(UserError, match=r"q8_0 0\.750, f16 0\.750; asked: 0\.98.*valid-0") as caught:
        work(run, settings([{"method": "gguf", "type": "q8_0"}]))
    assert "valid-1" not in str(caught.value)
    assert not (run.folder / ".compress" / "artifact" / "artifact.json").exists()


def test_a_prompt_that_is_read_as_other_tokens_is_refused(run: Run) -> None:
    class Tokenizer:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [1, 2, 3]

    class Engine:
        def tokens(self, prompt: Any) -> list[int]:
            return [1, 2, 4]

    room = Room(run.task, build("formats", "compact"), 8)
    with pytest.raises(UserError, match="valid-0"):
        room.check_prompts(Engine(), Tokenizer())


@pytest.mark.parametrize("steps", [["keep"], ["gguf", "keep"], ["gguf", "gguf"], []])
def test_one_exporter_stands_at_the_end(steps: list[Any]) -> None:
    with pytest.raises(UserError, match="one exporter"):
        validated(Settings, {"steps": steps}, "compress")


def test_a_wrong_method_is_named_with_its_place() -> None:
    with pytest.raises(UserError, match=r"steps\.0: .*'drop_block'.*'drop_blocks'"):
        validated(Settings, {"steps": ["drop_block", "gguf"]}, "compress")
