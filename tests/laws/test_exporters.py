"""What every exporter obeys: the artifact answers as the student does, reads the same tokens, and is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import LlamaForCausalLM

from supertiny.core.artifact import Artifact
from supertiny.core.errors import UserError
from supertiny.core.methods import build, cards
from supertiny.core.records import Prompt, Sampling
from tests.tiny_student import write_student

EXPORTERS = sorted(cards("exporters"))
PROMPTS = [Prompt(text="turn on the lamp\n>"), Prompt(text="лампа 灯 💡 12.5\n>")]
TYPES = ["q4_0", "q4_1", "q8_0", "f16"]
PART = "model.layers.0.mlp.down_proj.weight"


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


@pytest.mark.parametrize("opener", [{"method": "openvino", "precision": "float32"}, {"method": "llama_cpp"}])
@pytest.mark.parametrize("name", EXPORTERS)
def test_the_artifact_answers_as_the_student(name: str, opener: dict[str, str], student: Path, tmp_path: Path) -> None:
    if opener["method"] == "llama_cpp":
        pytest.importorskip("llama_cpp")  # an extra that compiles; `make test` brings it
    build("exporters", {"method": name, "type": "f16"}).export(student, tmp_path)
    artifact = build("engines", opener).open(tmp_path / "model.gguf")
    reference = build("engines", {"method": "torch", "precision": "float32"}).open(student)
    assert artifact.bytes == (tmp_path / "model.gguf").stat().st_size
    assert reference.bytes == (student / "model.safetensors").stat().st_size
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
    assert (tmp_path / "a" / "model.gguf").read_bytes() == (tmp_path / "b" / "model.gguf").read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("name", EXPORTERS)
def test_it_counts_the_weights_that_the_student_has(name: str, student: Path, tmp_path: Path) -> None:
    told = build("exporters", name).export(student, tmp_path)
    assert told["parameters"] == sum(tensor.size for tensor in load_file(student / "model.safetensors").values())


@pytest.mark.parametrize("name", EXPORTERS)
def test_an_unknown_architecture_is_named_with_those_that_work(name: str, student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}), encoding="utf-8")
    with pytest.raises(UserError, match=r"GPT2LMHeadModel.*LlamaForCausalLM"):
        build("exporters", name).export(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "model.gguf").exists()


@pytest.mark.parametrize("name", EXPORTERS)
def test_a_truncated_artifact_is_refused_by_card_and_engine(name: str, student: Path, tmp_path: Path) -> None:
    told = build("exporters", name).export(student, tmp_path)
    artifact = Artifact.of(tmp_path, "compact", told["type"], told["parameters"], "tiny")
    artifact.save_card()
    assert Artifact.open(tmp_path) == artifact
    whole = artifact.model.read_bytes()
    artifact.model.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="bytes"):
        Artifact.open(tmp_path)
    with pytest.raises(UserError, match="truncated"):
        build("engines", "openvino").open(artifact.model)
    artifact.model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="sha256"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize("name", EXPORTERS)
def test_each_larger_type_is_closer_and_takes_more_bytes(name: str, student: Path, tmp_path: Path) -> None:
    original = load_file(student / "model.safetensors")[PART]
    sizes, errors, kinds = [], [], []
    exporter = build("exporters", {"method": name, "type": "q4_0"})
    for candidate in (exporter, *exporter.larger()):
        kinds.append(candidate.export(student, tmp_path)["type"])
        sizes.append((tmp_path / "model.gguf").stat().st_size)
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
        stored = tensors["blk.0.ffn_down.weight"]
        plain = gguf.quants.dequantize(stored.data, stored.tensor_type)
        errors.append(float(np.abs(plain - original).mean()))
        assert tensors["token_embd.weight"].tensor_type.name == ("F16" if kinds[-1] == "f16" else "Q8_0")
        assert "output.weight" not in tensors
    assert kinds == TYPES
    assert sizes == sorted(set(sizes))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


def test_a_tokenizer_that_gguf_does_not_know_is_a_user_error(student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(student, folder)
    plain = json.loads((student / "tokenizer.json").read_text(encoding="utf-8"))
    for part, value in (("merges", []), ("type", "Unigram")):
        broken = {**plain, "model": {**plain["model"], part: value}}
        (folder / "tokenizer.json").write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(UserError, match=part if part == "merges" else value):
            build("exporters", "gguf").export(folder, tmp_path / "out")
    (folder / "tokenizer.json").write_text(
        json.dumps({**plain, "pre_tokenizer": {"type": "Metaspace"}}), encoding="utf-8"
    )
    with pytest.raises(UserError, match="splits text"):
        build("exporters", "gguf").export(folder, tmp_path / "out")
