"""Packed matrices: bits go in and come out, and a file that is none is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from supertiny.compress.packed import (
    Packed,
    load_packed,
    pack_bits,
    pack_trits,
    save_packed,
    unpack_bits,
    unpack_trits,
)
from supertiny.core.errors import UserError
from supertiny.core.methods import build

MATRIX = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 64, 101])
def test_bits_come_back(bits: int, count: int) -> None:
    codes = torch.randint(0, 1 << bits, (count,), generator=torch.Generator().manual_seed(bits))
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count * bits // 8)
    assert torch.equal(unpack_bits(packed, bits, count).long(), codes)


@pytest.mark.parametrize("count", [1, 4, 5, 6, 102])
def test_trits_come_back_five_to_a_byte(count: int) -> None:
    trits = torch.randint(-1, 2, (count,), generator=torch.Generator().manual_seed(count))
    packed = pack_trits(trits)
    assert len(packed) == -(-count // 5)
    assert torch.equal(unpack_trits(packed, count).long(), trits)


def test_a_truncated_or_foreign_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    save_packed(path, {"a": build("quantizers", "rtn").quantize(MATRIX, None)})
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:5], b"", b"GGUF" + whole, whole[:-1]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="no packed matrices"):
            load_packed(path)
    save_file({"a:codes": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="no packed matrices"):
        load_packed(path)
    with pytest.raises(UserError, match="not there"):
        load_packed(tmp_path / "none")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "eval"},
        {"dtype": "object"},
        {"shape": [6, 10**12]},
        {"shape": [6, 65]},
        {"shape": [6]},
        {"shape": ["6", "64"]},
        {"settings": {"bits": 3, "group": 64, "zero": "middle"}},
        {"settings": {"bits": 4, "group": 0, "zero": "middle"}},
        {"settings": {"bits": 4, "group": 64, "zero": "integer"}},
        {"settings": {"bits": 4, "group": 64}},
        {"settings": None},
    ],
)
def test_a_card_that_does_not_fit_its_tensors_is_told(change: dict[str, Any], tmp_path: Path) -> None:
    packed = build("quantizers", "rtn").quantize(MATRIX, None)
    card = {"kind": packed.kind, "shape": [6, 64], "dtype": packed.dtype, "settings": dict(packed.settings)}
    tensors = {f"a:{name}": tensor for name, tensor in packed.tensors.items()}
    path = tmp_path / "packed.safetensors"
    save_file(tensors, path, {"packed": json.dumps({"a": card})})
    assert torch.equal(load_packed(path)["a"].restored(), packed.restored())
    save_file(tensors, path, {"packed": json.dumps({"a": {**card, **change}})})
    with pytest.raises(UserError, match="no packed matrices"):
        load_packed(path)


def test_tensors_that_do_not_belong_are_refused() -> None:
    packed = build("quantizers", "rtn").quantize(MATRIX, None)
    with pytest.raises(ValueError, match="more"):
        Packed("uniform", (6, 64), "float32", packed.settings, {**packed.tensors, "more": torch.zeros(1)})
    with pytest.raises(ValueError, match="bias"):
        Packed("uniform", (6, 64), "float32", packed.settings, {**packed.tensors, "bias": torch.zeros(6).half()})
