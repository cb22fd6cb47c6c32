"""The ways of rounding that quantize_quality compares, at equal bits per weight, and what each makes of a model.

A way puts rounded values in place of a model's matrices and says how many bits they take, scales included. Embedding
and head stay as they are.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import _compress_jobs as jobs
from benchmarks._llama_types import Rounding, plainly_rounded
from supertiny.compress.inputs import Inputs
from supertiny.compress.layers import blocks_of, change_matrices, matrices_of, walk
from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.training.lessons import Batch
from supertiny.training.pupil import Pupil

BITS = (4, 3, 2)
SCALE_BITS = 0.5  # of a weight, at most, for scales: what llama.cpp's q4_0 spends
LLAMA_TYPES = ("q4_0", "q4_1", "iq4_nl")
_TRIT_PLANES = 3  # bits whose budget holds two planes: 3.2
_OUR_TYPES = ("q4_0", "q4_1")  # of llama.cpp, that gptq fits weights to
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Way:
    """One line of the table."""

    name: str
    """As its figures are called."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of a quantizer of ours, or of the rival's job."""
    kind: str = "ours"
    """ours, llama, rival, or none, which leaves the weights as they are."""

    @property
    def weighs(self) -> bool:
        """Whether llama.cpp is given an importance matrix."""
        return self.kind == "llama" and bool(self.settings["importance"])


UNQUANTIZED = Way("unquantized", kind="none")


def ways(widths: Sequence[int], methods: Sequence[str], library: bool, rival: bool) -> list[Way]:
    """All that can be measured for matrices of these widths, the unquantized model first."""
    found = [UNQUANTIZED]
    for bits in BITS:
        for method in methods:
            settings = settings_of(method, bits, widths)
            if settings is not None:
                found.append(Way(f"{method}_{bits}", settings))
    if "gptq" in methods:
        found += [Way(f"gptq_{kind}", {"method": "gptq", "grid": kind}) for kind in _OUR_TYPES]
    for kind in LLAMA_TYPES if library else ():
        found.append(Way(f"llama_{kind}", {"type": kind, "importance": True}, "llama"))
    for kind in LLAMA_TYPES if library else _OUR_TYPES:
        found.append(Way(f"llama_{kind}_plain", {"type": kind, "importance": False}, "llama"))
    if rival:
        group = group_of(16, math.gcd(*widths))
        found += [Way(f"llmcompressor_gptq_{bits}", {"bits": bits, "group": group}, "rival") for bits in BITS]
    return found


def settings_of(method: str, bits: int, widths: Sequence[int]) -> dict[str, Any] | None:
    """A quantizer's block with the smallest group that fills all rows and stays in the budget; None where it has none.

    The budget is `bits` and half a bit for scales.
    """
    whole = math.gcd(*widths)
    if method == "trit_planes":
        # 8 bits hold five trits, so two planes take 3.2, and each group two scales.
        spare = _TRIT_PLANES + SCALE_BITS - 3.2
        return {"method": method, "group": group_of(32, whole, spare)} if bits == _TRIT_PLANES else None
    scales = {"rtn": 16, "gptq": 16, "hqq": 32, "bit_planes": 16 * bits}[method]
    return {"method": method, "bits": bits, "group": group_of(scales, whole)}


def group_of(scale_bits: int, whole: int, spare: float = SCALE_BITS) -> int:
    """The smallest group that divides `whole` and whose scales take at most `spare` bits a weight.

    Raises UserError where there is none.
    """
    for size in range(1, whole + 1):
        if whole % size == 0 and scale_bits / size <= spare:
            return size
    raise UserError(f"no group that fills {whole} columns has scales of at most {spare:.2f} bits a weight")


def widths_of(model: Any) -> list[int]:
    """Columns of the matrices, each once."""
    return sorted({layer.in_features for layer in _layers(model).values()})


def importance_of(pupil: Pupil, calibration: Sequence[Batch], tick: Tick) -> dict[str, torch.Tensor]:
    """By matrix, the mean square (in,) of its inputs in the unquantized model, as llama.cpp's importance matrix has."""
    found = {}
    for block in walk(pupil.model, calibration, gram=False):
        found |= {name: inputs.second for name, inputs in block.inputs.items()}
        tick(block.place + 1, block.of)
    return found


@dataclass
class Workshop:
    """What ways need beside the model."""

    student: Path
    calibration: Sequence[Batch]
    rows: Sequence[Sequence[int]]
    """Token ids of the calibration rows."""
    library: Rounding | None = None
    importance: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rival: Path | None = None

    def rounded(self, way: Way, pupil: Pupil, tick: Tick) -> float:
        """Rounds the model's matrices in place; gives true bits per weight."""
        if way.kind == "none":
            return 16.0 if all(map(_is_half, _layers(pupil.model).values())) else 32.0
        if way.kind == "ours":
            return self._ours(way, pupil, tick)
        return self._llama(way, pupil, tick) if way.kind == "llama" else self._rival(way, pupil)

    def _ours(self, way: Way, pupil: Pupil, tick: Tick) -> float:
        quantizer = build("quantizers", dict(way.settings))
        bits: list[float] = []
        weights: list[int] = []

        def change(name: str, weight: torch.Tensor, inputs: Inputs | None) -> torch.Tensor:
            packed = quantizer.quantize(weight, inputs)
            bits.append(8 * packed.bytes)
            weights.append(weight.numel())
            matrix: torch.Tensor = packed.restored()
            return matrix

        if "calibration" in getattr(quantizer, "needs", ()):
            change_matrices(pupil.model, self.calibration, change, tick=tick)
        else:
            for name, layer in _ticked(_layers(pupil.model), tick):
                _put(layer, change(name, layer.weight.detach(), None))
        return sum(bits) / sum(weights)

    def _llama(self, way: Way, pupil: Pupil, tick: Tick) -> float:
        rounding = self.library or plainly_rounded
        bits = weights = 0
        for name, layer in _ticked(_layers(pupil.model), tick):
            importance = self.importance[name] if way.weighs else None
            values, size = rounding(way.settings["type"], layer.weight.detach(), importance)
            _put(layer, values)
            bits, weights = bits + 8 * size, weights + values.numel()
        return bits / weights

    def _rival(self, way: Way, pupil: Pupil) -> float:
        """Symmetric codes and a 16-bit scale of each group, as it packs them."""
        assert self.rival is not None
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "weights.safetensors"
            about = {**way.settings, "precision": "float32", "sparsity": 0.0, "blocks": 0, "weights": str(target)}
            jobs.rivals({"kind": "gptq", "model": str(self.student.resolve()), "rows": self.rows, **about}, self.rival)
            values = load_file(target)
        layers = _layers(pupil.model)
        if values.keys() != layers.keys():
            raise UserError(f"{jobs.RIVAL} rounded other matrices: {sorted(values.keys() ^ layers.keys())[:3]}")
        for name, layer in layers.items():
            _put(layer, values[name])
        return float(way.settings["bits"] + 16 / way.settings["group"])


def _is_half(layer: torch.nn.Linear) -> bool:
    return torch.equal(layer.weight, layer.weight.bfloat16().to(layer.weight.dtype))


def _layers(model: Any) -> dict[str, torch.nn.Linear]:
    return {name: layer for place in range(len(blocks_of(model))) for name, layer in matrices_of(model, place).items()}


def _ticked(layers: Mapping[str, torch.nn.Linear], tick: Tick) -> Iterator[tuple[str, torch.nn.Linear]]:
    for done, (name, layer) in enumerate(layers.items(), 1):
        yield name, layer
        tick(done, len(layers))


def _put(layer: torch.nn.Linear, values: torch.Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(values)
