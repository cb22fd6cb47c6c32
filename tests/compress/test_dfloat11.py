"""dfloat11 loses no bit, saves what the entropy of exponents promises, and refuses what was changed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from supertiny.compress.exporters._huffman import CHUNK, LONGEST, code_lengths, decoded, encoded
from supertiny.compress.exporters.dfloat11 import Dfloat11
from supertiny.core.errors import UserError
from tests.tiny_student import write_student


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(300, 257, generator=generator) * 0.04
    any_bits = torch.randint(-(2**15), 2**15, (9000,), generator=generator, dtype=torch.int16).view(torch.bfloat16)
    return {
        "normal": normal.bfloat16(),
        "any.bits": any_bits,  # not-a-numbers, infinities, negative zeros among them
        "zeros": torch.zeros(70, 71, dtype=torch.bfloat16),
        "float32": normal,
        "float32_of_bfloat16": normal.bfloat16().float(),
        "half": normal.half(),
        "small": torch.randn(7, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 4, dtype=torch.bfloat16),
        "places": torch.arange(5000),
        "one": torch.tensor(2.5),
    }


def folder_of(there: dict[str, torch.Tensor], folder: Path) -> Path:
    folder.mkdir()
    save_file(there, folder / "model.safetensors")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


def test_every_tensor_comes_back_bit_for_bit(tmp_path: Path) -> None:
    student = folder_of(tensors(), tmp_path / "student")
    told = Dfloat11().export(student, tmp_path / "artifact")
    back = Dfloat11.read(tmp_path / "artifact" / "model.safetensors")
    assert back.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert bits_of(back[name]) == bits_of(tensor), name
    assert told["parameters"] == sum(tensor.numel() for tensor in tensors().values())
    restored = load_file(Dfloat11.restore(tmp_path / "artifact", tmp_path / "plain") / "model.safetensors")
    assert all(bits_of(restored[name]) == bits_of(tensor) for name, tensor in tensors().items())


def test_it_takes_what_the_entropy_of_the_exponents_promises(tmp_path: Path) -> None:
    """N(0, 0.04^2): 2.55 bits of entropy an exponent, a code of at most 0.1 bits more, 0.03 for the chunks."""
    weights = (torch.randn(1000, 1000, generator=torch.Generator().manual_seed(1)) * 0.04).bfloat16()
    told = Dfloat11().export(folder_of({"weight": weights}, tmp_path / "student"), tmp_path / "artifact")
    shares = (
        np.bincount((weights.view(torch.int16).reshape(-1).numpy().astype(np.uint16) >> 7) & 0xFF) / weights.numel()
    )
    entropy = -sum(share * np.log2(share) for share in shares if share)
    assert entropy == pytest.approx(2.55, abs=0.03)
    assert (8 + entropy) / 16 < told["ratio"] < (8 + entropy + 0.15) / 16
    wide = folder_of({"weight": weights.float()}, tmp_path / "wide")
    halved = Dfloat11().export(wide, tmp_path / "other")["ratio"]
    assert halved == pytest.approx(told["ratio"] / 2, rel=1e-3), "float32 that bfloat16 holds costs nothing more"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=256),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5000]),
)
def test_codes_are_read_back_whatever_is_frequent(powers: list[int], seed: int, count: int) -> None:
    """Counts from 1 to 2^40 would give codes of up to 40 bits: none is longer than 14."""
    lengths = code_lengths(np.array([2**power for power in powers] + [0] * (256 - len(powers))))
    used = lengths[lengths > 0].astype(int)
    assert len(used) == len(powers)
    assert used.max() <= LONGEST
    assert len(powers) == 1 or (2.0**-used).sum() == 1, "a code that wastes no room"
    symbols = np.random.default_rng(seed).integers(0, len(powers), count).astype(np.uint8)
    stream, chunks = encoded(symbols, lengths)
    assert len(stream) == -(-int(lengths[symbols].astype(int).sum()) // 8)
    assert np.array_equal(decoded(stream, chunks, lengths, count), symbols)


def test_huffman_lengths_are_the_known_ones() -> None:
    counts = np.zeros(256, np.int64)
    counts[[5, 9, 12, 13, 16, 45]] = [5, 9, 12, 13, 16, 45]  # the textbook's example
    lengths = code_lengths(counts)
    assert lengths[[45, 16, 13, 12, 9, 5]].tolist() == [1, 3, 3, 3, 4, 4]


@pytest.mark.parametrize("length", [0, 7, 9, 300, -1, -1000])
def test_a_file_that_is_cut_short_is_a_user_error(length: int, tmp_path: Path) -> None:
    student = write_student(tmp_path / "student")
    Dfloat11().export(student, tmp_path / "artifact")
    path = tmp_path / "artifact" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="no whole safetensors file"):
        Dfloat11.read(path)


def test_no_changed_byte_goes_unseen(tmp_path: Path) -> None:
    weights = (torch.randn(80, 80, generator=torch.Generator().manual_seed(2)) * 0.04).bfloat16()
    Dfloat11().export(folder_of({"weight": weights}, tmp_path / "student"), tmp_path / "artifact")
    path = tmp_path / "artifact" / "model.safetensors"
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    generator, refused = np.random.default_rng(0), 0
    for place in [*generator.integers(begin, len(whole), 60).tolist(), begin, len(whole) - 1]:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(generator.integers(0, 8))
        path.write_bytes(bytes(changed))
        back = None
        with contextlib.suppress(UserError):
            back = Dfloat11.read(path)["weight"]
        refused += back is None
        # A bit that fills up the last byte, or a code that no weight has, changes nothing.
        assert back is None or bits_of(back) == bits_of(weights)
    assert refused > 50


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [80, 81]},
        {"shape": [-80, -80]},
        {"shape": [10**12, 10**12]},
        {"shape": "many"},
        {"dtype": "float32"},
        {"dtype": "int4"},
        {"packed": False},
        {"crc32": 1},
    ],
)
def test_metadata_that_lies_is_a_user_error(change: dict[str, object], tmp_path: Path) -> None:
    weights = torch.ones(80, 80, dtype=torch.bfloat16)
    Dfloat11().export(folder_of({"weight": weights}, tmp_path / "student"), tmp_path / "artifact")
    path = tmp_path / "artifact" / "model.safetensors"
    parts = load_file(path)
    told = {"dtype": "bfloat16", "shape": [80, 80], "crc32": 0, "packed": True, **change}
    save_file(parts, path, {"dfloat11": json.dumps({"weight": told})})
    with pytest.raises(UserError, match="weight is broken"):
        Dfloat11.read(path)


def test_parts_that_do_not_belong_together_are_a_user_error(tmp_path: Path) -> None:
    weights = (torch.randn(80, 80, generator=torch.Generator().manual_seed(2)) * 0.04).bfloat16()
    student = folder_of({"weight": weights}, tmp_path / "student")
    Dfloat11().export(student, tmp_path / "artifact")
    path = tmp_path / "artifact" / "model.safetensors"
    from safetensors import safe_open

    metadata = safe_open(path, "pt").metadata()
    parts = load_file(path)
    hostile = {
        "lengths": torch.full((256,), 1, dtype=torch.uint8),
        "chunks": torch.full((13,), 2**16 - 1, dtype=torch.uint16),
        "exponents": torch.zeros(3, dtype=torch.uint8),
        "rest": torch.zeros(6400, dtype=torch.int16),
    }
    for part, value in [*hostile.items(), ("lengths", torch.zeros(256, dtype=torch.uint8))]:
        save_file({**parts, f"weight.{part}": value}, path, metadata)
        with pytest.raises(UserError, match="weight is broken"):
            Dfloat11.read(path)
    save_file(parts, path, {"dfloat11": "[" * 10_000})
    with pytest.raises(UserError, match="not written by dfloat11"):
        Dfloat11.read(path)
    with pytest.raises(UserError, match="not written by dfloat11"):
        Dfloat11.read(student)
    with pytest.raises(UserError, match="no whole safetensors file"):
        Dfloat11.read(tmp_path / "nowhere")
