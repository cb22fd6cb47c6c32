"""Matrices as the bytes of llama.cpp's block types; what lies on a type's grid already is stored as it is.

llama.cpp's own rounding takes a block's scale from its largest weight. Weights that were fitted (by gptq, awq or
training) stand on scales of their own, which that rule would miss: so the scale is looked for first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np

Array = np.ndarray[Any, Any]
BLOCK = 32  # weights that share a scale
_AT_ONCE = 1 << 15  # blocks that are worked on together, so that temporaries stay small
_LEVELS = {"q4_0": (-8, 7), "q5_0": (-16, 15), "q8_0": (-128, 127)}
_STEPS = {"q4_1": 15, "q5_1": 31}


def packed(matrix: Array, kind: str) -> Array:
    """(rows, bytes) uint8 of a float32 matrix (rows, columns); a block on the type's grid keeps every value."""
    blocks = np.ascontiguousarray(matrix, dtype=np.float32).reshape(-1, BLOCK)
    raw = gguf.GGMLQuantizationType[kind.upper()]
    parts = []
    for start in range(0, len(blocks), _AT_ONCE):
        part = blocks[start : start + _AT_ONCE]
        # One long row: the package works on 16 rows at once, and these are short.
        bytes_of: Array = gguf.quants.quantize(part.reshape(1, -1), raw).reshape(len(part), -1)
        stored = gguf.quants.dequantize(bytes_of.reshape(1, -1), raw).reshape(part.shape)
        loose = np.flatnonzero((stored != part).any(axis=1))
        if len(loose):
            there, held = _on_grid(part[loose], kind)
            bytes_of[loose[there]] = held
        parts.append(bytes_of)
    return np.concatenate(parts).reshape(*matrix.shape[:-1], -1)


def _on_grid(blocks: Array, kind: str) -> tuple[Array, Array]:
    """Places of the blocks that lie on the grid, and their bytes."""
    if kind in _STEPS:
        there, scale, least, steps = affine_grid(blocks, _STEPS[kind])
        heads = [scale, least]
    else:
        low, high = _LEVELS[kind]
        there, scale, steps = symmetric_grid(blocks, low, high)
        steps, heads = steps - low, [scale]
        if kind == "q8_0":
            steps = (steps + low).astype(np.int8).view(np.uint8)
    bytes_of = [head.astype(np.float16)[:, None].view(np.uint8) for head in heads]
    steps = steps.astype(np.uint8)
    if kind != "q8_0":
        if kind in ("q5_0", "q5_1"):
            bytes_of.append(np.packbits(steps >> 4, axis=1, bitorder="little"))
        low_bits = steps & 15
        steps = low_bits[:, : BLOCK // 2] | (low_bits[:, BLOCK // 2 :] << 4)
    return there, np.concatenate([*bytes_of, steps], axis=1)


def symmetric_grid(blocks: Array, low: int, high: int) -> tuple[Array, Array, Array]:
    """(places, scales, steps) of the blocks (n, width) that are a float16 scale times integers in [low, high].

    A scale is positive unless a step of `low` makes it negative. Blocks on no such grid are not among the places.
    """
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)[:, 0]
    least = np.where(blocks == 0, np.inf, np.abs(blocks)).min(axis=1)
    found = _Found(len(blocks), blocks.shape[1], 1)
    zero = np.flatnonzero(largest == 0)
    found.take(zero, [np.zeros(len(zero), np.float32)], np.zeros((len(zero), blocks.shape[1]), np.int16))

    def scales() -> Iterator[Callable[[Array], Array]]:
        for step in range(1, high + 1):  # the largest scale of several that hold the same values
            yield lambda top, step=step: np.abs(top) / step  # type: ignore[misc]
        yield lambda top: top / low

    for scale_of in scales():
        open_places = found.open
        top = largest[open_places]
        scale = _half(scale_of(top))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            fits = np.isfinite(scale) & (scale != 0) & (np.abs(scale) <= least[open_places])
            fits &= np.rint(top / scale) * scale == top
        places, scale = open_places[fits], scale[fits]
        steps = np.rint(blocks[places] / scale[:, None])
        exact = (steps * scale[:, None] == blocks[places]) & (steps >= low) & (steps <= high)
        holds = exact.all(axis=1)
        found.take(places[holds], [scale[holds]], steps[holds].astype(np.int16))
    places = found.places
    return places, found.heads[0][places], found.steps[places]


def affine_grid(blocks: Array, most: int) -> tuple[Array, Array, Array, Array]:
    """(places, scales, minima, steps) of blocks that are scale * integer in [0, most] + minimum, both float16."""
    lowest, highest = blocks.min(axis=1), blocks.max(axis=1)
    above = np.where(blocks > lowest[:, None], blocks, np.inf).min(axis=1) - lowest
    slack = np.maximum(np.abs(lowest), np.abs(highest)) * np.float32(2.0**-22)
    found = _Found(len(blocks), blocks.shape[1], 2)
    flat = np.flatnonzero((lowest == highest) & (_half(lowest) == lowest))
    found.take(flat, [lowest[flat] * 0, lowest[flat]], np.zeros((len(flat), blocks.shape[1]), np.int16))
    for span in range(1, most + 1):
        places = found.open
        scale = _half((highest - lowest)[places] / span)
        with np.errstate(invalid="ignore", over="ignore"):
            near = np.abs(scale * span - (highest - lowest)[places]) <= slack[places]
            near &= (scale > 0) & (scale <= above[places] + slack[places]) & np.isfinite(scale)
        places, scale = places[near], scale[near]
        for first in range(most - span + 1):
            if not len(places):
                break
            least = _half(lowest[places] - scale * first)
            steps = np.rint((blocks[places] - least[:, None]) / scale[:, None])
            exact = (scale[:, None] * steps + least[:, None] == blocks[places]) & (steps >= 0) & (steps <= most)
            holds = exact.all(axis=1)
            found.take(places[holds], [scale[holds], least[holds]], steps[holds].astype(np.int16))
            places, scale = places[~holds], scale[~holds]
    places = found.places
    return places, found.heads[0][places], found.heads[1][places], found.steps[places]


class _Found:
    """Which blocks were found to lie on the grid, and where."""

    def __init__(self, blocks: int, width: int, heads: int) -> None:
        self.done = np.zeros(blocks, bool)
        self.heads = [np.zeros(blocks, np.float32) for _ in range(heads)]
        self.steps = np.zeros((blocks, width), np.int16)

    @property
    def open(self) -> Array:
        return np.flatnonzero(~self.done)

    @property
    def places(self) -> Array:
        return np.flatnonzero(self.done)

    def take(self, places: Array, heads: list[Array], steps: Array) -> None:
        self.done[places] = True
        self.steps[places] = steps
        for mine, given in zip(self.heads, heads, strict=True):
            mine[places] = given


def _half(values: Array) -> Array:
    """Rounded to float16, as float32."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)
