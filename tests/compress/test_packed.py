"""Packed matrices: bits go in and come out, and settings that do not fit are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from supertiny.compress.packed import (
    Packed,
    pack_bits,
    pack_trits,
    unpack_bits,
    unpack_trits,
)
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


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "eval"},
        {"dtype": "object"},
        {"shape": (6, 10**12)},
        {"shape": (6, 65)},
        {"settings": {"bits": 3, "group": 64, "zero": "middle"}},
        {"settings": {"bits": 4, "group": 0, "zero": "middle"}},
        {"settings": {"bits": 4, "group": 64, "zero": "integer"}},
    ],
)
def test_settings_that_do_not_fit_the_tensors_are_told(change: dict[str, Any]) -> None:
    packed = build("quantizers", "rtn").quantize(MATRIX, None)
    assert torch.equal(replace(packed, shape=(6, 64)).restored(), packed.restored())
    with pytest.raises(ValueError, match="packed|must be|columns"):
        replace(packed, **change)


def test_tensors_that_do_not_belong_are_refused() -> None:
    packed = build("quantizers", "rtn").quantize(MATRIX, None)
    with pytest.raises(ValueError, match="more"):
        Packed("uniform", (6, 64), "float32", packed.settings, {**packed.tensors, "more": torch.zeros(1)})
    with pytest.raises(ValueError, match="bias"):
        Packed("uniform", (6, 64), "float32", packed.settings, {**packed.tensors, "bias": torch.zeros(6).half()})
