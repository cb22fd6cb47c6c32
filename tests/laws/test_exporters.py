"""What every exporter obeys: the artifact answers as the student does, reads the same tokens, and is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import LlamaForCausalLM

from supertiny.core.artifact import Artifact
from supertiny.core.errors import UserError
from supertiny.core.methods import build, cards
from supertiny.core.records import Prompt, Sampling
from supertiny.training.grid import settle
from tests.tiny_student import write_student

EXPORTERS = sorted(cards("exporters"))
ONE_FILE = ("gguf",)  # the others write a folder and can read it back: `restore`
OF_NETWORKS = ("compressed_tensors", "gguf")  # dfloat11 packs any tensors
PROMPTS = [Prompt(text="turn on the lamp\n>"), Prompt(text="лампа 灯 💡 12.5\n>")]
TYPES = {"gguf": ["q4_0", "q4_1", "q8_0", "f16"], "compressed_tensors": ["int4", "int8"], "dfloat11": ["dfloat11"]}
PART = "model.layers.0.mlp.down_proj.weight"
OPENERS: list[dict[str, Any]] = [{"method": "openvino", "precision": "float32"}, {"method": "llama_cpp"}]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student with one token more, which a merge makes: GGUF knows no tokenizer without merges."""
    folder = write_student(tmp_path_factory.mktemp("student"))
    model = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["th"] = model.config.vocab_size
    tokenizer["model"]["merges"] = [["t", "h"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    model.resize_token_embeddings(model.config.vocab_size + 1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settled(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student with its matrices on q4_0's grid, as training for that type leaves them."""
    folder = tmp_path_factory.mktemp("settled") / "student"
    shutil.copytree(student, folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    settle(model, "q4_0")
    model.save_pretrained(folder)
    return folder


def opened(name: str, opener: dict[str, Any], artifact: Path, plain: Path) -> Any:
    """An engine on the artifact, or on what it says that it holds where no engine of ours opens it."""
    if name in ONE_FILE:
        return build("engines", opener).open(Artifact(artifact, "", "", 0, "", 0).model)
    restored = build("exporters", name).restore(artifact, plain)
    return build("engines", {"method": "torch", "precision": "float32"}).open(restored)


def part_in(name: str, artifact: Path, plain: Path) -> np.ndarray[Any, Any]:
    """One matrix, as whoever opens the artifact sees it."""
    if name not in ONE_FILE:
        restored: np.ndarray[Any, Any] = load_file(
            build("exporters", name).restore(artifact, plain) / "model.safetensors"
        )[PART]
        return restored
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(artifact / "model.gguf").tensors}
    stored = tensors["blk.0.ffn_down.weight"]
    there: np.ndarray[Any, Any] = gguf.quants.dequantize(stored.data, stored.tensor_type)
    return there


@pytest.mark.parametrize("opener", OPENERS, ids=lambda opener: opener["method"])
@pytest.mark.parametrize("name", EXPORTERS)
def test_the_artifact_answers_as_the_student(name: str, opener: dict[str, Any], settled: Path, tmp_path: Path) -> None:
    """Its smallest type too, since the weights stand on that type's grid: within 0.05 nats."""
    if opener["method"] == "llama_cpp":
        pytest.importorskip("llama_cpp")  # an extra that compiles; `make test` brings it
    build("exporters", name).export(settled, tmp_path / "artifact")
    artifact = opened(name, opener, tmp_path / "artifact", tmp_path / "plain")
    reference = build("engines", {"method": "torch", "precision": "float32"}).open(settled)
    assert reference.bytes == (settled / "model.safetensors").stat().st_size
    for prompt in PROMPTS:
        assert list(artifact.tokens(prompt)) == list(reference.tokens(prompt))
    sampling = Sampling(max_tokens=12)
    expected = reference.complete(PROMPTS, sampling)
    written = artifact.complete(PROMPTS, sampling)
    assert [one.text for one in written] == [one.text for one in expected]
    assert [one.logprob for one in written] == pytest.approx([one.logprob for one in expected], abs=0.05)


@pytest.mark.parametrize("name", EXPORTERS)
def test_exporting_twice_gives_the_same_bytes_and_leaves_nothing_else(name: str, student: Path, tmp_path: Path) -> None:
    exporter = build("exporters", name)
    exporter.export(student, tmp_path / "a")
    exporter.export(student, tmp_path / "b")
    beside = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    names = {"model.gguf"} if name in ONE_FILE else beside
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    assert all((tmp_path / "a" / one).read_bytes() == (tmp_path / "b" / one).read_bytes() for one in names)


@pytest.mark.parametrize("name", EXPORTERS)
def test_it_counts_the_weights_that_the_student_has(name: str, student: Path, tmp_path: Path) -> None:
    told = build("exporters", name).export(student, tmp_path)
    assert told["parameters"] == sum(tensor.size for tensor in load_file(student / "model.safetensors").values())


def changed_config(student: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(student, folder)
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", OF_NETWORKS)
def test_an_unknown_architecture_is_named_with_those_that_work(name: str, student: Path, tmp_path: Path) -> None:
    folder = changed_config(student, tmp_path / "other", architectures=["GPT2LMHeadModel"])
    with pytest.raises(UserError, match=r"GPT2LMHeadModel.*LlamaForCausalLM"):
        build("exporters", name).export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", OF_NETWORKS)
def test_a_student_that_is_quantized_already_or_lacks_a_number_is_refused(
    name: str, student: Path, tmp_path: Path
) -> None:
    twice = changed_config(student, tmp_path / "twice", quantization_config={"quant_method": "gptq"})
    with pytest.raises(UserError, match="quantized already"):
        build("exporters", name).export(twice, tmp_path / "out")
    headless = changed_config(student, tmp_path / "headless", num_attention_heads=0)
    with pytest.raises(UserError, match="lacks num_attention_heads"):
        build("exporters", name).export(headless, tmp_path / "out")


@pytest.mark.parametrize("length", [0, 4, 100, -100])
@pytest.mark.parametrize("name", EXPORTERS)
def test_a_student_whose_weights_are_cut_short_is_refused(
    name: str, length: int, student: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(student, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:length])
    with pytest.raises(UserError, match="no whole safetensors file"):
        build("exporters", name).export(folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no safetensors file"):
        build("exporters", name).export(folder, tmp_path / "out")


@pytest.mark.parametrize("name", EXPORTERS)
def test_a_truncated_artifact_is_refused_by_card_and_engine(name: str, student: Path, tmp_path: Path) -> None:
    told = build("exporters", name).export(student, tmp_path / "artifact")
    artifact = Artifact.of(tmp_path / "artifact", "compact", told["type"], told["parameters"], "tiny")
    artifact.save_card()
    assert Artifact.open(tmp_path / "artifact") == artifact
    whole = artifact.model.read_bytes()
    artifact.model.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="bytes"):
        Artifact.open(tmp_path / "artifact")
    with pytest.raises(UserError, match="truncated|no whole safetensors file"):
        opened(name, OPENERS[0], tmp_path / "artifact", tmp_path / "plain")
    artifact.model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="sha256"):
        Artifact.open(tmp_path / "artifact")


@pytest.mark.parametrize("name", EXPORTERS)
def test_each_larger_type_is_closer_and_takes_more_bytes(name: str, student: Path, tmp_path: Path) -> None:
    original = load_file(student / "model.safetensors")[PART]
    sizes, errors, kinds = [], [], []
    exporter = build("exporters", name)
    for candidate in (exporter, *getattr(exporter, "larger", list)()):
        kinds.append(candidate.export(student, tmp_path / "artifact")["type"])
        sizes.append(Artifact(tmp_path / "artifact", "", "", 0, "", 0).model.stat().st_size)
        errors.append(float(np.abs(part_in(name, tmp_path / "artifact", tmp_path / "plain") - original).mean()))
    assert kinds == TYPES[name]
    assert sizes == sorted(set(sizes))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 2e-4
