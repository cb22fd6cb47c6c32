"""A tensor of floats as exponents, which a few codes hold, and the bits beside them, which nothing makes smaller."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from supertiny.compress.exporters._huffman import code_lengths, decoded, encoded

Array = np.ndarray[Any, Any]
_PACKED = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_PLAIN = {"float16": torch.float16, "float64": torch.float64, "int64": torch.int64, "int32": torch.int32}
_PLAIN |= {"uint8": torch.uint8, "int8": torch.int8, "bool": torch.bool}


def parts_of(tensor: torch.Tensor, large: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Parts to be stored, and what `join` must be told: dtype, shape, checksum of the bytes, whether it is packed."""
    kind = str(tensor.dtype).removeprefix("torch.")
    raw = tensor.reshape(-1).view(torch.uint8).numpy()
    told = {"dtype": kind, "shape": list(tensor.shape), "crc32": zlib.crc32(raw.data), "packed": False}
    if not large or kind not in _PACKED:
        return {"plain": tensor}, told
    halves = raw.view(np.uint16)
    upper = halves if kind == "bfloat16" else halves[1::2]  # float32 is bfloat16 with 16 bits more
    exponents = ((upper >> 7) & 0xFF).astype(np.uint8)
    lengths = code_lengths(np.bincount(exponents, minlength=256))
    stream, chunks = encoded(exponents, lengths)
    rest = ((upper >> 8) & 0x80 | upper & 0x7F).astype(np.uint8)
    parts = {"rest": rest, "exponents": stream, "chunks": chunks, "lengths": lengths}
    if kind == "float32" and halves[::2].any():
        parts["lower"] = np.ascontiguousarray(halves[::2])
    return {name: torch.from_numpy(part) for name, part in parts.items()}, {**told, "packed": True}


def join(parts: Mapping[str, Callable[[], torch.Tensor]], told: Mapping[str, Any]) -> torch.Tensor:
    """The tensor, bit for bit. Raises KeyError, TypeError or ValueError where parts are missing or do not fit."""
    shape = [int(length) for length in told["shape"]]
    if any(length < 0 for length in shape):
        raise ValueError(f"a shape of {shape}")
    if not told["packed"]:
        tensor = parts["plain"]()
        if tensor.dtype != {**_PACKED, **_PLAIN}[told["dtype"]] or list(tensor.shape) != shape:
            raise ValueError("another type or shape than it was written with")
    else:
        tensor = _unpacked(parts, told["dtype"], math.prod(shape)).reshape(shape)
    if zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data) != told["crc32"]:
        raise ValueError("its bits were changed")
    return tensor


def _unpacked(parts: Mapping[str, Callable[[], torch.Tensor]], kind: str, count: int) -> torch.Tensor:
    rest = _array(parts["rest"], torch.uint8)
    if len(rest) != count:
        raise ValueError(f"{len(rest)} weights where its shape has {count}")
    stream, lengths = (_array(parts[name], torch.uint8) for name in ("exponents", "lengths"))
    exponents = decoded(stream, _array(parts["chunks"], torch.uint16), lengths, count)
    rest = rest.astype(np.uint16)
    upper = (rest & 0x80) << 8 | exponents.astype(np.uint16) << 7 | rest & 0x7F
    if kind == "bfloat16":
        return torch.from_numpy(upper).view(torch.bfloat16)
    if kind != "float32":
        raise ValueError(f"{kind} is never packed")
    halves = np.zeros((count, 2), np.uint16)
    halves[:, 1] = upper
    if "lower" in parts:
        halves[:, 0] = _array(parts["lower"], torch.uint16)
    return torch.from_numpy(halves.reshape(-1)).view(torch.float32)


def _array(read: Callable[[], torch.Tensor], kind: torch.dtype) -> Array:
    tensor = read()
    if tensor.dtype != kind or tensor.ndim != 1:
        raise ValueError(f"a part of type {tensor.dtype} with {tensor.ndim} axes")
    array: Array = tensor.numpy()
    return array
