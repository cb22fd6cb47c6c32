"""The compress stage on a tiny student: what it leaves, what it refuses, and that a kill costs little."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer

from supertiny.compress import stage
from supertiny.compress.examining import Paper, Room
from supertiny.compress.gate import Sitting
from supertiny.compress.settings import Settings
from supertiny.core.artifact import Artifact
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, write_json, write_rows
from supertiny.core.methods import build, validated
from supertiny.core.progress import Progress
from supertiny.core.run import Run
from supertiny.core.student import Student
from tests.small_run import Gate, add_merge, settings, work


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
    assert [step["bytes"] for step in steps[:2]] == [2 * whole.parameters, 2 * small.parameters], "both as f16"
    assert steps[2]["bytes"] == artifact.bytes
    before = AutoModelForCausalLM.from_pretrained(whole.folder, dtype=torch.bfloat16).get_input_embeddings().weight
    after = AutoModelForCausalLM.from_pretrained(small.folder, dtype=torch.bfloat16).get_input_embeddings().weight
    assert not torch.equal(before, after), "the recovery taught nothing"
    for step in steps:
        assert step["n"] == 4
        assert step["low"] <= step["exact"] <= step["high"]


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    state = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    return {name: tensor for name, tensor in state.items() if "_proj" in name}


def zeros(folder: Path) -> list[float]:
    return [float((tensor == 0).double().mean()) for tensor in matrices(folder).values()]


@pytest.mark.parametrize("pruner", ["magnitude", "wanda", "sparsegpt", "ecoflap", "pst"])
def test_a_pruned_student_learns_and_keeps_its_zeros(pruner: str, run: Run, gate: Gate) -> None:
    pruned = {"method": pruner, "sparsity": 0.5}
    _, folder = work(run, settings([pruned, "keep", {"method": "gguf", "type": "q8_0"}], quantization_aware=False))
    shares = zeros(folder / "student")
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.1)
    if pruner == "wanda":
        assert shares == pytest.approx([0.5] * len(shares), abs=1e-3)
    before, after = matrices(run.folder / "transfer" / "student"), matrices(folder / "student")
    moved = [bool(((after[name] != 0) & (after[name] != before[name])).any()) for name in after]
    assert any(moved), "the recovery taught nothing"


def test_zeros_outlive_training_on_the_grid_and_what_shrinks_after_them(run: Run, gate: Gate) -> None:
    steps = [{"method": "magnitude", "sparsity": 0.5}, {"method": "drop_blocks", "blocks": 1}, "gguf"]
    _, folder = work(run, settings(steps))
    assert all(share >= 0.5 for share in zeros(folder / "student"))


def test_a_matrix_that_is_skipped_stays_as_it_is(run: Run, gate: Gate) -> None:
    pruned = {"method": "magnitude", "sparsity": 0.5, "skip": ["*.down_proj"]}
    _, folder = work(run, settings([pruned, "gguf"], recovery=None))
    before, after = matrices(run.folder / "transfer" / "student"), matrices(folder / "student")
    same = {name.split(".")[-2] for name in after if torch.equal(before[name].bfloat16(), after[name].bfloat16())}
    assert same == {"down_proj"}
    with pytest.raises(UserError, match=r"'\*\.down_prj'"):
        work(run, settings([{**pruned, "skip": ["*.down_prj"]}, "gguf"]))


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", [{"method": "gptq", "grid": "q4_0"}, {"method": "lsq_lora", "group": 32}])
def test_what_a_quantizer_fitted_is_packed_as_it_is(quantizer: dict[str, Any], run: Run) -> None:
    summary, folder = work(run, settings([quantizer, {"method": "gguf", "type": "q4_0", "embedding": "f16"}]))
    assert (summary["type"], summary["agreement"]) == ("q4_0", 1.0)
    stored = {tensor.name: tensor for tensor in GGUFReader(folder / "artifact" / "model.gguf").tensors}
    found = stored["blk.0.ffn_down.weight"]
    packed = torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type))
    fitted = matrices(folder / "student")["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(packed.reshape(fitted.shape), fitted)
    before = matrices(run.folder / "transfer" / "student")["model.layers.0.mlp.down_proj.weight"]
    assert not torch.equal(before, fitted)


def test_pruned_and_then_rounded_weights_keep_their_zeros(run: Run, gate: Gate) -> None:
    steps = [{"method": "wanda", "sparsity": 0.5}, {"method": "gptq", "grid": "q4_0"}, "gguf"]
    _, folder = work(run, settings(steps, recovery=None))
    assert all(share >= 0.5 for share in zeros(folder / "student"))


def test_a_vocabulary_that_is_trimmed_goes_on_through_recovery_and_export(run: Run, gate: Gate) -> None:
    add_merge(run.folder / "transfer" / "student", "q", "z")  # a token that no row has
    steps = [{"method": "trim_vocabulary", "extra_tokens": 0}, {"method": "drop_blocks", "blocks": 1}, "gguf"]
    _, folder = work(run, settings(steps))
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    model = AutoModelForCausalLM.from_pretrained(folder / "student")
    whole = AutoTokenizer.from_pretrained(run.folder / "transfer" / "student")
    assert model.config.vocab_size == len(tokenizer) < len(whole)
    assert tokenizer.convert_ids_to_tokens(model.config.eos_token_id) == "<|im_end|>"
    assert build("formats", "compact").stop in tokenizer.get_vocab()
    assert model.config.num_hidden_layers == 1
    text = "turn on the kitchen light"
    assert tokenizer.tokenize(text) == whole.tokenize(text)


def test_without_recovery_a_step_leaves_what_it_made(run: Run, gate: Gate) -> None:
    _, folder = work(run, settings([{"method": "drop_blocks", "blocks": 1}, "gguf"], recovery=None))
    before, after = matrices(run.folder / "transfer" / "student"), matrices(folder / "student")
    kept = {name.replace("layers.1.", "layers.0.") for name in before}
    assert kept == set(after)
    possible = ({n.replace(f"layers.{place}.", "layers.0."): t for n, t in before.items()} for place in (0, 1))
    assert any(all(torch.equal(tensors[name], after[name]) for name in after) for tensors in possible)


def broken(until: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports before this one answer nothing of valid as the student does."""
    seen: list[float] = []

    def sit(room: Room, engine: Any, paper: Paper, probes: Any) -> Sitting:
        seen.append(1.0)
        return Sitting((1.0,) * 4 if len(seen) == 1 or len(seen) >= until else (0.0,) * 4)

    monkeypatch.setattr(Room, "sit", sit)


def test_a_type_that_is_not_promoted_gives_way_to_the_next(
    run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(4, monkeypatch)  # the first is the student's own
    summary, folder = work(run, settings(["keep", {"method": "gguf", "type": "q4_0"}]))
    assert (summary["type"], summary["promoted"], summary["fell_back"]) == ("q8_0", True, False)
    last = read_json(folder / "steps.json")[-1]
    assert [one["type"] for one in last["refused"]] == ["q4_0", "q4_1"]
    assert "exact calls went from 100.0 to 0.0 %" in last["refused"][0]["broke"][0]


def test_a_larger_type_of_the_student_itself_is_no_fall_back(
    run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(3, monkeypatch)
    summary, folder = work(run, settings([{"method": "gguf", "type": "q4_0"}]))
    assert (summary["type"], summary["promoted"], summary["fell_back"]) == ("q4_1", True, False)
    assert [one["type"] for one in read_json(folder / "steps.json")[-1]["refused"]] == ["q4_0"]


def test_a_measured_student_without_what_the_gate_asks_is_measured_again(run: Run, gate: Gate) -> None:
    folder = run.folder / ".compress"
    folder.mkdir()
    write_json(folder / ".measured-student.json", {"said": [], "exact": 0.0})
    summary, _ = work(run, settings(["gguf"]))
    assert summary["promoted"]


def test_where_nothing_is_promoted_the_student_takes_its_place_and_that_is_said(
    run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    broken(4, monkeypatch)
    monkeypatch.setattr(Progress, "note", lambda self, text: said.append(text))
    steps = [{"method": "drop_blocks", "blocks": 1}, {"method": "gguf", "type": "q8_0"}]
    summary, folder = work(run, settings(steps, recovery=None))
    assert (summary["type"], summary["promoted"], summary["fell_back"]) == ("q8_0", True, True)
    whole = Student.open(run.folder / "transfer" / "student")
    assert Artifact.open(folder / "artifact").parameters == whole.parameters
    assert Student.open(folder / "student").parameters == whole.parameters
    assert any("not promoted: exact calls" in line for line in said)
    assert any("the student itself takes its place" in line for line in said)
    assert len(read_json(folder / "steps.json")[-1]["refused"]) == 2


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
    monkeypatch.setattr(stage._Work, "_shape", killed)
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


def test_what_cannot_be_compressed_is_told_and_leaves_no_artifact(run: Run, gate: Gate) -> None:
    for steps, told in (
        ([{"method": "rtn", "group": 48}, "gguf"], r"48"),
        ([{"method": "wanda", "sparsity": 0.6, "pattern": "2:4"}, "gguf"], r"2:4"),
        ([{"method": "drop_blocks", "blocks": 2}, "gguf"], r"cannot drop 2 of 2"),
    ):
        with pytest.raises(UserError, match=told):
            work(run, settings(steps))
        assert not (run.folder / ".compress" / "artifact").exists()
        shutil.rmtree(run.folder / ".compress")


def test_a_student_that_is_cut_off_or_strange_is_told(run: Run, gate: Gate) -> None:
    weights = run.folder / "transfer" / "student" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="model.safetensors"):
        work(run, settings())
    weights.write_bytes(whole)
    config = run.folder / "transfer" / "student" / "config.json"
    config.write_text(config.read_text("utf-8").replace("LlamaForCausalLM", "BloomForCausalLM"), encoding="utf-8")
    with pytest.raises(UserError, match="BloomForCausalLM.*LlamaForCausalLM"):
        work(run, settings())


def test_without_train_rows_nothing_can_be_calibrated(run: Run, gate: Gate) -> None:
    write_rows(run.folder / "prototype" / "train.jsonl", [])
    with pytest.raises(UserError, match="no example with an answer"):
        work(run, settings())
