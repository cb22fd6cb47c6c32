"""GGUF's types and tokenizers, and the compressed-tensors format, each read by means that are not the exporter's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from supertiny.compress.exporters import _gguf_grid, _gguf_k
from supertiny.compress.exporters.compressed_tensors import CompressedTensors
from supertiny.compress.exporters.gguf import Gguf
from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.records import Prompt
from tests.tiny_student import write_student

LEVELS = {"q4_0": (-8, 7), "q5_0": (-16, 15), "q8_0": (-128, 127)}
MOST = {"q4_1": 15, "q5_1": 31}
WIDE = "model.layers.0.mlp.down_proj.weight"


def raw_of(kind: str) -> Any:
    return gguf.GGMLQuantizationType[kind.upper()]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student with a merge, and with rows of 256 in `down_proj`, which K types need."""
    folder = write_student(tmp_path_factory.mktemp("student"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["th"] = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["merges"] = [["t", "h"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = LlamaConfig.from_pretrained(folder)
    config.vocab_size, config.intermediate_size = config.vocab_size + 1, 256
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def exported(student: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    Gguf(**settings).export(student, folder)
    return {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}


@pytest.mark.parametrize("kind", LEVELS)
def test_fitted_weights_on_a_symmetric_grid_are_stored_as_they_are(kind: str) -> None:
    """Their scale is not the one that llama.cpp takes from the largest weight; it comes back bit for bit."""
    low, high = LEVELS[kind]
    generator = np.random.default_rng(3)
    steps = generator.integers(low, high + 1, (257, 64)).astype(np.float32)
    steps[:, ::32] = 1  # so that no larger scale gives the same values
    steps[::2] = np.clip(steps[::2], low // 2 + 1, high // 2)
    steps[5, :32] = 0
    scales = generator.uniform(1e-4, 0.1, (257, 2)).astype(np.float16)
    matrix = steps * np.repeat(scales, 32, axis=1).astype(np.float32)
    packed = _gguf_grid.packed(matrix, kind)
    assert np.array_equal(gguf.dequantize(packed, raw_of(kind)), matrix)
    stored = packed.reshape(257, 2, -1)[:, :, :2].copy().view(np.float16)[..., 0]
    expected = scales.copy()
    expected[5, 0] = stored[5, 0] = 0  # a zero may have either sign
    assert np.array_equal(stored.view(np.uint16), expected.view(np.uint16))
    lost = gguf.dequantize(gguf.quantize(matrix, raw_of(kind)), raw_of(kind))
    assert not np.array_equal(lost, matrix), "llama.cpp's own rounding holds them too: nothing is shown"


@pytest.mark.parametrize("kind", MOST)
def test_fitted_weights_on_an_affine_grid_are_stored_as_they_are(kind: str) -> None:
    generator = np.random.default_rng(4)
    steps = generator.integers(0, MOST[kind] + 1, (257, 64)).astype(np.float32)
    steps[::2] = np.clip(steps[::2], 2, MOST[kind] - 3)
    steps[:, ::32], steps[:, 1::32] = 4, 5
    steps[7] = 0
    scales = generator.uniform(1e-3, 0.1, (257, 2)).astype(np.float16).astype(np.float32)
    least = generator.uniform(-1, 0.2, (257, 2)).astype(np.float16).astype(np.float32)
    matrix = np.repeat(scales, 32, axis=1) * steps + np.repeat(least, 32, axis=1)
    packed = _gguf_grid.packed(matrix, kind)
    assert np.array_equal(gguf.dequantize(packed, raw_of(kind)), matrix)
    lost = gguf.dequantize(gguf.quantize(matrix, raw_of(kind)), raw_of(kind))
    assert not np.array_equal(lost, matrix)


@pytest.mark.parametrize("kind", [*LEVELS, *MOST])
def test_other_weights_are_rounded_as_llama_cpp_does_and_rounding_twice_is_rounding_once(kind: str) -> None:
    matrix = np.random.default_rng(5).normal(0, 0.04, (70, 96)).astype(np.float32)
    packed = _gguf_grid.packed(matrix, kind)
    assert np.array_equal(packed, gguf.quantize(matrix, raw_of(kind)))
    assert np.array_equal(_gguf_grid.packed(gguf.dequantize(packed, raw_of(kind)), kind), packed)
    mixed = matrix.copy()
    mixed[3, :32] = np.float32(0.0625) * np.resize(np.arange(-3, 4), 32)  # one block of many is on the grid
    assert np.array_equal(gguf.dequantize(_gguf_grid.packed(mixed, kind), raw_of(kind))[3, :32], mixed[3, :32])


@pytest.mark.parametrize("extreme", [0.0, 1e-30, 1e30, float("inf")])
@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q8_0"])
def test_extreme_weights_do_not_stop_it(kind: str, extreme: float) -> None:
    matrix = np.full((2, 32), extreme, np.float32)
    with np.errstate(all="ignore"):
        assert _gguf_grid.packed(matrix, kind).shape == gguf.quantize(matrix, raw_of(kind)).shape


@pytest.mark.parametrize(
    ("kind", "bits", "plain"), [("q4_k", 4.5, "q4_0"), ("q5_k", 5.5, "q5_0"), ("q6_k", 6.5625, "")]
)
def test_k_types_are_read_by_the_gguf_package_and_are_closer_than_plain_ones(
    kind: str, bits: float, plain: str
) -> None:
    generator = np.random.default_rng(6)
    matrix = generator.standard_t(5, (64, 512)).astype(np.float32) * 0.03
    packed = _gguf_k.packed(matrix, kind)
    assert packed.nbytes * 8 == matrix.size * bits
    error = float(np.square(gguf.dequantize(packed, raw_of(kind)) - matrix).mean() / np.square(matrix).mean())
    assert error < {"q4_k": 0.0075, "q5_k": 0.0019, "q6_k": 0.0005}[kind]
    if plain:
        rounded = gguf.dequantize(gguf.quantize(matrix, raw_of(plain)), raw_of(plain))
        assert error < float(np.square(rounded - matrix).mean() / np.square(matrix).mean())
    zeros = np.zeros((1, 256), np.float32)
    assert not gguf.dequantize(_gguf_k.packed(zeros, kind), raw_of(kind)).any()


@pytest.mark.parametrize(
    ("kind", "wide", "narrow"),
    [
        ("q4_k", "Q4_K", "Q4_1"),
        ("q5_k", "Q5_K", "Q5_1"),
        ("q6_k", "Q6_K", "Q8_0"),
        ("q5_0", "Q5_0", "Q5_0"),
        ("q5_1", "Q5_1", "Q5_1"),
        ("bf16", "BF16", "BF16"),
    ],
)
def test_every_type_is_stored_where_shapes_allow(
    kind: Any, wide: str, narrow: str, student: Path, tmp_path: Path
) -> None:
    tensors = exported(student, tmp_path, type=kind)
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == wide
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == narrow
    assert tensors["token_embd.weight"].tensor_type.name == ("BF16" if kind == "bf16" else "Q8_0")
    assert "output.weight" not in tensors
    stored = tensors["blk.0.ffn_down.weight"]
    plain = load_file(student / "model.safetensors")[WIDE].numpy()
    assert np.abs(gguf.dequantize(stored.data, stored.tensor_type) - plain).mean() < 0.1 * np.abs(plain).mean()


@pytest.mark.parametrize("kind", ["q4_k", "q6_k"])
def test_openvino_reads_them_as_the_gguf_package_does(kind: Any, student: Path, tmp_path: Path) -> None:
    tensors = exported(student, tmp_path, type=kind)
    plain = load_file(student / "model.safetensors")
    for place in range(2):
        stored = tensors[f"blk.{place}.ffn_down.weight"]
        assert stored.tensor_type == raw_of(kind)
        values = gguf.dequantize(stored.data, stored.tensor_type)
        plain[f"model.layers.{place}.mlp.down_proj.weight"] = torch.from_numpy(values.copy())
    expected = tmp_path / "expected"
    shutil.copytree(student, expected)
    save_file(plain, expected / "model.safetensors", {"format": "pt"})
    prompt, said = [Prompt(text="turn on the lamp\n>")], ["some answer"]
    reference = build("engines", {"method": "torch", "precision": "float32"}).open(expected)
    artifact = build("engines", {"method": "openvino", "precision": "float32"}).open(tmp_path / "model.gguf")
    there, here = (engine.score(prompt, said)[0].token_logprobs for engine in (reference, artifact))
    assert np.asarray(here) == pytest.approx(np.asarray(there), abs=0.05)


def test_single_matrices_have_types_of_their_own_and_the_last_match_counts(student: Path, tmp_path: Path) -> None:
    types: Any = {"*.ffn_*": "q8_0", WIDE: "q5_k", "token_embd.weight": "q4_1"}
    tensors = exported(student, tmp_path, type="q4_0", types=types)
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == "Q5_K"
    assert kinds["blk.1.ffn_down.weight"] == kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["token_embd.weight"] == "Q4_1"
    assert kinds["blk.0.ffn_norm.weight"] == "F32"
    ladder = Gguf("q4_0", types=types).larger()
    assert [one.type for one in ladder] == ["q4_1", "q8_0", "f16"]
    assert [dict(one.types) for one in ladder] == [{"*.ffn_*": "q8_0", WIDE: "q5_k"}, {}, {}]
    with pytest.raises(UserError, match=r"'blk\.0\.ffn_downs\.weight'.*'blk\.0\.ffn_down\.weight'"):
        exported(student, tmp_path, types={"blk.0.ffn_downs.weight": "q8_0"})
    with pytest.raises(UserError, match="types"):
        build("exporters", {"method": "gguf", "types": {"*": "q3"}})


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


def decoded(folder: Path, name: str, bits: int) -> torch.Tensor:
    """A matrix as the format's documents say: offset integers from the lowest bits up, times their group's scale."""
    tensors = load_file(folder / "model.safetensors")
    words, scale, shape = (tensors[f"{name}_{part}"] for part in ("packed", "scale", "shape"))
    assert (words.dtype, scale.dtype, shape.dtype) == (torch.int32, torch.float16, torch.int64)
    rows, columns = shape.tolist()
    assert words.shape == (rows, columns * bits // 32)
    steps = torch.zeros(rows, columns)
    for place in range(columns):
        word = words[:, place * bits // 32].long() & 0xFFFFFFFF
        steps[:, place] = ((word >> (place * bits % 32)) & (2**bits - 1)) - 2 ** (bits - 1)
    return steps * scale.float().repeat_interleave(columns // scale.shape[1], dim=1)


@pytest.mark.parametrize(("kind", "bits", "worst"), [("int4", 4, 0.11), ("int8", 8, 0.012)])
def test_compressed_tensors_are_what_the_format_documents(
    kind: Any, bits: int, worst: float, student: Path, tmp_path: Path
) -> None:
    CompressedTensors(kind).export(student, tmp_path / "a")
    told = json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8"))
    about = told["quantization_config"]
    assert (about["quant_method"], about["format"]) == ("compressed-tensors", "pack-quantized")
    group = about["config_groups"]["group_0"]["weights"]
    assert (group["num_bits"], group["strategy"]) == (bits, "group" if bits == 4 else "channel")
    plain = load_file(student / "model.safetensors")
    there = decoded(tmp_path / "a", WIDE, bits)
    assert float((there - plain[WIDE]).norm() / plain[WIDE].norm()) < worst
    restored = load_file(CompressedTensors.restore(tmp_path / "a", tmp_path / "b") / "model.safetensors")
    assert torch.equal(restored[WIDE], there)
    assert restored.keys() == plain.keys()
    model = LlamaForCausalLM.from_pretrained(tmp_path / "b")
    assert model.dtype == torch.float32


def test_weights_on_llama_cpps_grid_keep_their_values_in_compressed_tensors(student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "on_grid"
    shutil.copytree(student, folder)
    tensors = load_file(folder / "model.safetensors")
    raw = raw_of("q4_0")
    on_grid = gguf.dequantize(gguf.quantize(tensors[WIDE].numpy(), raw), raw)
    save_file({**tensors, WIDE: torch.from_numpy(on_grid)}, folder / "model.safetensors", {"format": "pt"})
    CompressedTensors().export(folder, tmp_path / "a")
    assert np.array_equal(decoded(tmp_path / "a", WIDE, 4).numpy(), on_grid)


def test_a_group_that_does_not_divide_and_a_broken_folder_are_user_errors(student: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="128 does not divide the 64 inputs"):
        CompressedTensors(group=128).export(student, tmp_path / "a")
    CompressedTensors().export(student, tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    tensors = load_file(path)
    for part, value in (("shape", torch.tensor([64, 999])), ("scale", torch.ones(1)), ("packed", torch.ones(2))):
        save_file({**tensors, f"{WIDE}_{part}": value}, path)
        with pytest.raises(UserError, match=r"down_proj\.weight cannot be unpacked"):
            CompressedTensors.restore(tmp_path / "a", tmp_path / "b")
    shutil.copyfile(student / "config.json", tmp_path / "a" / "config.json")
    with pytest.raises(UserError, match="not written by compressed_tensors"):
        CompressedTensors.restore(tmp_path / "a", tmp_path / "b")
