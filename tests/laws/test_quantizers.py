"""What every quantizer obeys: more bits less error, twice is once, bytes by the formula, calibrated ones beat rtn."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from supertiny.compress.inputs import Inputs
from supertiny.core.errors import UserError
from supertiny.core.methods import build, cards

QUANTIZERS = sorted(cards("quantizers"))
LLAMA = ("q4_0", "q4_1", "q5_0", "q8_0")
ZEROS = ("middle", "integer", "offset")
VARIANTS: list[Any] = [
    *QUANTIZERS,
    *({"method": name, "zero": zero, "bits": bits} for name in ("rtn", "gptq") for zero in ZEROS for bits in (2, 8)),
    *({"method": "gptq", "grid": grid} for grid in LLAMA),
    *({"method": "gptq", "ordered": True, "zero": zero} for zero in ("middle", "offset")),
    {"method": "gptq", "ordered": True, "grid": "q4_1"},
    *({"method": "bit_planes", "bits": bits} for bits in (1, 4)),
    {"method": "hqq", "bits": 2, "group": 32},
    {"method": "rtn", "group": 0},
    {"method": "ternary_aware", "bias": 0.0},
]
CALIBRATED = [v for v in VARIANTS if "calibration" in getattr(build("quantizers", v), "needs", ())]
# Scales found by alternation need not be found again; the share of the first error that a second time may add.
ADDED = {"bit_planes": 0.03}
# Bits of codes and of what each group keeps besides, by the papers' own counting.
BITS: dict[str, Callable[[Any], tuple[float, float]]] = {
    "rtn": lambda m: (m.bits, 16 + {"middle": 0, "integer": m.bits, "offset": 16}[m.zero]),
    "gptq": lambda m: (m.bits, 16 + {"middle": 0, "integer": m.bits, "offset": 16}[m.zero]),
    "hqq": lambda m: (m.bits, 32),
    "lsq_lora": lambda m: (m.bits, 16),
    "nf4": lambda m: (4, 16),
    "bit_planes": lambda m: (m.bits, 16 * m.bits),
    "trit_planes": lambda m: (2 * 8 / 5, 32),
    "ternary_aware": lambda m: (8 / 5, 16),
}


def matrix(height: int = 12, width: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(height, width, generator=torch.Generator().manual_seed(seed)) * 0.05


def inputs(width: int = 128, tokens: int = 400, seed: int = 1) -> Inputs:
    """Correlated, and of different sizes."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=draw) / width**0.5 + torch.diag(torch.rand(width, generator=draw))
    return Inputs.of(torch.randn(tokens, width, generator=draw) @ mix)


def error(weight: torch.Tensor, variant: Any, seen: Inputs | None = None) -> float:
    restored = build("quantizers", variant).quantize(weight, seen or inputs(weight.shape[1])).restored()
    return float((restored - weight).square().sum())


@pytest.mark.parametrize("name", [n for n in QUANTIZERS if hasattr(build("quantizers", n), "bits")])
def test_error_falls_with_bits(name: str) -> None:
    seen = inputs()
    least = 1 if name == "bit_planes" else 2
    lost = []
    for bits in range(least, 5):
        packed = build("quantizers", {"method": name, "bits": bits}).quantize(matrix(), seen)
        lost.append(float(seen.output_error(matrix(), packed.restored()).sum()))
    assert all(more < 0.6 * fewer for fewer, more in itertools.pairwise(lost)), lost


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_twice_is_once(variant: Any) -> None:
    quantizer, weight, seen = build("quantizers", variant), matrix(20), inputs()
    once = quantizer.quantize(weight, seen).restored()
    twice = quantizer.quantize(once, seen).restored()
    allowed = ADDED.get(variant if isinstance(variant, str) else variant["method"], 0.0)
    assert (twice - once).square().sum() <= allowed * (once - weight).square().sum()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_packed_bytes_are_what_the_formula_says(variant: Any, tmp_path: Path) -> None:
    quantizer = build("quantizers", variant)
    packed = quantizer.quantize(matrix(), inputs())
    assert packed.bytes == sum(t.numel() * t.element_size() for t in packed.tensors.values())
    assert packed.bits_per_weight == pytest.approx(8 * packed.bytes / (12 * 128))
    grid = getattr(quantizer, "grid", "")
    if grid:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[grid.upper()]]
        assert packed.bytes == 12 * 128 // block * size
        return
    name = variant if isinstance(variant, str) else variant["method"]
    code, scales = BITS[name](quantizer)
    expected = code * 12 * 128 / 8 + scales * 12 * (128 / (quantizer.group or 128)) / 8
    expected += 2 * 12 if getattr(quantizer, "bias", 0) else 0
    assert packed.bytes == math.ceil(expected)


@pytest.mark.parametrize("variant", CALIBRATED, ids=str)
@pytest.mark.parametrize("tokens", [1, 40, 2000])
def test_calibrated_ones_are_no_worse_than_rtn_on_what_they_saw(variant: Any, tokens: int) -> None:
    weight, seen = matrix(), inputs(tokens=tokens)
    quantizer = build("quantizers", variant)
    lost = seen.output_error(weight, quantizer.quantize(weight, seen).restored())
    if getattr(quantizer, "grid", ""):
        kind = gguf.GGMLQuantizationType[quantizer.grid.upper()]
        plain = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind).copy())
    else:
        block = {"method": "rtn", "bits": quantizer.bits, "group": quantizer.group, "zero": quantizer.zero}
        plain = build("quantizers", block).quantize(weight, None).restored()
    simple = seen.output_error(weight, plain)
    assert (lost <= simple * (1 + 1e-3) + 1e-9).all()
    if tokens == 2000:
        assert lost.sum() < 0.9 * simple.sum()


def strange() -> dict[str, torch.Tensor]:
    zero_columns, constant, outliers, rows = matrix(), matrix(), matrix(), matrix()
    zero_columns[:, 30:70] = 0
    constant[3], constant[4] = 0.7, -0.3
    outliers[2, 17], outliers[5, 100] = 1e6, -3e7
    rows[1:9] = 0
    return {
        "zero columns": zero_columns,
        "constant rows": constant,
        "outliers": outliers,
        "zero rows": rows,
        "nothing": torch.zeros(12, 128),
        "tiny": matrix() * 1e-9,
        "one row": matrix(1),
        "bfloat16": (matrix() * 1e30).bfloat16(),
        "equal extremes": matrix().sign(),
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kind", strange())
def test_what_comes_out_is_finite_whatever_goes_in(variant: Any, kind: str) -> None:
    draw = torch.Generator().manual_seed(2)
    states = torch.randn(50, 128, generator=draw)  # fewer tokens than columns
    states[:, 5:70] = 0
    restored = build("quantizers", variant).quantize(strange()[kind], Inputs.of(states)).restored()
    assert restored.isfinite().all()
    if kind == "nothing":
        assert (restored == 0).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrix_stays_as_it_was_and_comes_back_in_shape_and_type(variant: Any, dtype: torch.dtype) -> None:
    weight = matrix().to(dtype)
    before = weight.clone()
    quantizer, seen = build("quantizers", variant), inputs()
    packed = quantizer.quantize(weight, seen)
    assert torch.equal(weight, before)
    assert packed.restored().shape == weight.shape
    assert packed.restored().dtype == dtype
    assert torch.equal(packed.restored(), quantizer.quantize(torch.nn.Parameter(weight), seen).restored())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_what_cannot_be_quantized_is_told(name: str) -> None:
    quantizer, seen = build("quantizers", {"method": name, "group": 128}), inputs(576)
    with pytest.raises(UserError, match="do not fill 576 columns") as told:
        quantizer.quantize(matrix(4, 576), seen)
    assert {"64", "576"} <= set(told.value.hint.removeprefix("it divides by ").split(", "))
    quantizer = build("quantizers", name)
    with pytest.raises(UserError, match="quantized already"):
        quantizer.quantize(torch.zeros(4, 128, dtype=torch.int8), inputs())
    with pytest.raises(UserError, match="not finite"):
        quantizer.quantize(matrix().fill_(torch.nan), inputs())
    with pytest.raises(UserError, match="matrices"):
        quantizer.quantize(torch.zeros(3), inputs())


@pytest.mark.parametrize("variant", CALIBRATED, ids=str)
def test_those_that_need_calibration_say_so(variant: Any) -> None:
    quantizer = build("quantizers", variant)
    with pytest.raises(UserError, match="needs calibration rows"):
        quantizer.quantize(matrix(), None)
    with pytest.raises(UserError, match="gram"):
        quantizer.quantize(matrix(), dataclasses.replace(inputs(), gram=None))
    with pytest.raises(ValueError, match="64 wide"):
        quantizer.quantize(matrix(), inputs(64))
