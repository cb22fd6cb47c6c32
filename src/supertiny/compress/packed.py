"""A quantized matrix in few bits: each of them counted, and the matrix that they stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch

LEVELS: Mapping[str, tuple[float, ...]] = {
    # Quantiles of the normal distribution as bitsandbytes rounds them: 8 below zero, zero, 7 above.
    "nf4": (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
}
BLOCK = 32  # weights that share a scale in llama.cpp's small types
BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q8_0": 34}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_HALF, _BYTE = torch.float16, torch.uint8


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix (out, in) in few bits. What `tensors` hold follows from `kind` and `settings`:

    uniform  codes of `bits`, a scale per `group` of a row: scale * (code - zero), where `zero` says where that stands:
             "middle" of the codes, an "integer" per group (zeros), or "offset": scale * code + offset
    levels   4-bit codes of a table of levels, and a scale per group
    planes   `bits` planes of signs, and a scale per plane and group
    trits    `planes` planes of -1, 0, 1, five to a byte, and a scale per plane and group; perhaps a bias (out,)
    llama    blocks of 32 weights as llama.cpp's `type` lays them out, (out, bytes of a row)
    """

    kind: str
    shape: tuple[int, int]
    dtype: str
    """Name of the float type of `restored()`."""
    settings: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        expected = _layout(self)
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()}
        wrong = [name for name in expected if found.get(name) != expected[name]]
        if wrong or (extra := set(found) - set(expected) - {"bias"}):
            raise ValueError(f"a packed {self.kind} matrix {self.shape} has wrong {wrong or sorted(extra)}")
        bias = self.tensors.get("bias")
        if bias is not None and (self.kind != "trits" or bias.shape != self.shape[:1] or bias.dtype != _HALF):
            raise ValueError(f"a packed {self.kind} matrix {self.shape} has a wrong bias")

    @property
    def bytes(self) -> int:
        """What all tensors take, scales included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / math.prod(self.shape)

    def restored(self) -> torch.Tensor:
        """The matrix (out, in) that these bits stand for. A bias is not part of it: see `tensors`."""
        return _READERS[self.kind](self).reshape(self.shape).to(_DTYPES[self.dtype])


def pack_bits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes of non-negative integers below 2**bits, the lowest bit first."""
    flat = codes.reshape(-1).to(_BYTE)
    if bits == 8:
        return flat
    spread = (flat[:, None] >> torch.arange(bits, dtype=_BYTE, device=flat.device)) & 1
    spread = torch.nn.functional.pad(spread.reshape(-1), (0, -flat.numel() * bits % 8)).reshape(-1, 8)
    return (spread << torch.arange(8, dtype=_BYTE, device=flat.device)).sum(dim=1, dtype=_BYTE)


def unpack_bits(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` integers that `pack_bits` packed, as uint8."""
    if bits == 8:
        return packed[:count]
    spread = (packed[:, None] >> torch.arange(8, dtype=_BYTE, device=packed.device)) & 1
    spread = spread.reshape(-1)[: count * bits].reshape(count, bits)
    return (spread << torch.arange(bits, dtype=_BYTE, device=packed.device)).sum(dim=1, dtype=_BYTE)


def pack_trits(trits: torch.Tensor) -> torch.Tensor:
    """Bytes of numbers -1, 0, 1, five to a byte: 3**5 = 243."""
    flat = trits.reshape(-1).to(torch.int16) + 1
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 5)).reshape(-1, 5)
    return (flat * flat.new_tensor([1, 3, 9, 27, 81])).sum(dim=1).to(_BYTE)


def unpack_trits(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` trits that `pack_trits` packed, as int8."""
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.int16, device=packed.device)
    spread = (packed.to(torch.int16)[:, None] // powers) % 3 - 1
    return spread.reshape(-1)[:count].to(torch.int8)


def llama_blocks(type: str, codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Bytes (blocks, bytes of a block) of codes (blocks, 32), counted from the grid's lowest point; scales (blocks, 1).

    Reads back as llama.cpp reads it: scale * (code - middle), and scale * code + offset in q4_1.
    """
    halves = [scale.half().cpu().numpy().view(np.uint8).reshape(-1, 2)]
    if type == "q8_0":
        numbers = (codes.to(torch.int16) - 127).to(torch.int8).cpu().numpy().view(np.uint8)
        return torch.from_numpy(np.concatenate([*halves, numbers], axis=1)).to(codes.device)
    whole = codes.to(_BYTE).cpu().numpy()
    if type == "q4_1":
        halves.append(offset.half().cpu().numpy().view(np.uint8).reshape(-1, 2))
    if type == "q5_0":
        halves.append(np.packbits(whole >> 4, axis=1, bitorder="little"))
    nibbles = whole & 15
    blocks = np.concatenate([*halves, nibbles[:, :16] | nibbles[:, 16:] << 4], axis=1)
    return torch.from_numpy(blocks).to(codes.device)


def _layout(packed: Packed) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape that each tensor must have; raises ValueError where the settings make no sense."""
    settings = packed.settings
    height, width = (_number(side, "side", 1, 1 << 31) for side in packed.shape)
    if packed.dtype not in _DTYPES or packed.kind not in _READERS:
        raise ValueError(f"there is no packed {packed.kind!r} of {packed.dtype!r}")
    if packed.kind == "llama":
        if settings["type"] not in BLOCK_BYTES or width % BLOCK:
            raise ValueError(f"no blocks of {settings['type']!r} have {width} columns")
        return {"blocks": (_BYTE, (height, width // BLOCK * BLOCK_BYTES[settings["type"]]))}
    if width % _number(settings["group"], "group", 1, width):
        raise ValueError(f"{width} columns are no groups of {settings['group']}")
    groups, count = width // settings["group"], height * width
    if packed.kind == "planes":
        bits = _number(settings["bits"], "bits", 1, 8)
        return {"signs": (_BYTE, (math.ceil(count * bits / 8),)), "scales": (_HALF, (height, groups, bits))}
    if packed.kind == "trits":
        planes = _number(settings["planes"], "planes", 1, 8)
        return {"trits": (_BYTE, (math.ceil(count * planes / 5),)), "scales": (_HALF, (height, groups, planes))}
    if packed.kind == "levels":
        if settings["table"] not in LEVELS:
            raise ValueError(f"there is no table of levels {settings['table']!r}")
        return {"codes": (_BYTE, (math.ceil(count / 2),)), "scales": (_HALF, (height, groups))}
    bits = _number(settings["bits"], "bits", 1, 8)
    layout = {"codes": (_BYTE, (math.ceil(count * bits / 8),)), "scales": (_HALF, (height, groups))}
    more: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {
        "middle": {},
        "integer": {"zeros": (_BYTE, (math.ceil(height * groups * bits / 8),))},
        "offset": {"offsets": (_HALF, (height, groups))},
    }
    return {**layout, **more[settings["zero"]]}


def _number(value: Any, name: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}; found {value!r}")
    return value


def _uniform(packed: Packed) -> torch.Tensor:
    bits, group, tensors = packed.settings["bits"], packed.settings["group"], packed.tensors
    scales = tensors["scales"].float().reshape(-1, 1)
    codes = unpack_bits(tensors["codes"], bits, math.prod(packed.shape)).reshape(-1, group).float()
    if "offsets" in tensors:
        return scales * codes + tensors["offsets"].float().reshape(-1, 1)
    middle = torch.tensor(float(1 << (bits - 1)), device=codes.device)
    zeros = unpack_bits(tensors["zeros"], bits, len(scales)).float()[:, None] if "zeros" in tensors else middle
    return scales * (codes - zeros)


def _levels(packed: Packed) -> torch.Tensor:
    codes = unpack_bits(packed.tensors["codes"], 4, math.prod(packed.shape)).long()
    table = torch.tensor(LEVELS[packed.settings["table"]], device=codes.device)
    return table[codes].reshape(-1, packed.settings["group"]) * packed.tensors["scales"].float().reshape(-1, 1)


def _planes(packed: Packed) -> torch.Tensor:
    bits, count = packed.settings["bits"], math.prod(packed.shape)
    signs = unpack_bits(packed.tensors["signs"], 1, count * bits).float().mul_(2).sub_(1)
    return _summed(packed, signs.reshape(bits, -1, packed.settings["group"]))


def _trits(packed: Packed) -> torch.Tensor:
    planes, count = packed.settings["planes"], math.prod(packed.shape)
    trits = unpack_trits(packed.tensors["trits"], count * planes).float()
    return _summed(packed, trits.reshape(planes, -1, packed.settings["group"]))


def _summed(packed: Packed, planes: torch.Tensor) -> torch.Tensor:
    """Planes (planes, groups, group) times their scales, added in order."""
    scales = packed.tensors["scales"].float().reshape(-1, len(planes))
    total = torch.zeros_like(planes[0])
    for place, plane in enumerate(planes):
        total += scales[:, place, None] * plane
    return total


def _llama(packed: Packed) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType[packed.settings["type"].upper()]
    blocks = packed.tensors["blocks"]
    return torch.from_numpy(gguf.quants.dequantize(blocks.cpu().numpy(), kind).copy()).to(blocks.device)


_READERS = {"uniform": _uniform, "levels": _levels, "planes": _planes, "trits": _trits, "llama": _llama}
