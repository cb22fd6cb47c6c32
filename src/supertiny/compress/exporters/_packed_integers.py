"""Integers of few bits side by side in int32 words, with scales: the layout of compressed-tensors' `pack-quantized`."""

from __future__ import annotations

import numpy as np
import torch

from supertiny.compress.exporters._gguf_grid import symmetric_grid

SUFFIXES = ("packed", "scale", "shape")
_TRIES = 9  # how many shares of a group's largest weight are tried as its scale


def steps_and_scales(
    weight: torch.Tensor, bits: int, group: int, kind: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 steps (out, in) and scales (out, in / group) in `kind`; a group on such a grid keeps its values.

    A scale is negative where the values can only be held so: every reader multiplies.
    """
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    blocks = weight.detach().float().reshape(-1, group)
    scales, steps = _nearest(blocks, low, high, kind)
    loose = ((steps * scales[:, None].float()) != blocks).any(dim=1).nonzero()[:, 0]
    there, exact, held = symmetric_grid(blocks[loose].numpy(), low, high)
    fitted = torch.from_numpy(exact).to(kind)
    same = fitted.float() == torch.from_numpy(exact)  # bfloat16 does not hold every float16
    places = loose[torch.from_numpy(there)[same]]
    scales[places], steps[places] = fitted[same], torch.from_numpy(held.astype(np.float32))[same]
    rows = weight.shape[0]
    return steps.to(torch.int8).reshape(weight.shape), scales.reshape(rows, -1)


def _nearest(blocks: torch.Tensor, low: int, high: int, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Of several scales per group the one of least squared error, and the steps on it."""
    top = blocks.abs().amax(dim=1)
    best = torch.full_like(top, float("inf"))
    scales, steps = torch.zeros_like(top), torch.zeros_like(blocks)
    for levels in np.linspace(high, high * 1.25 + 1, _TRIES):
        scale = (top / levels).to(kind).float()
        inverse = torch.where(scale == 0, torch.zeros_like(scale), scale.reciprocal())
        tried = (blocks * inverse[:, None]).round().clamp(low, high)
        error = (tried * scale[:, None] - blocks).square().sum(dim=1)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, scale, scales)
        steps = torch.where(better[:, None], tried, steps)
    return scales.to(kind), steps


def pack(steps: torch.Tensor, bits: int) -> torch.Tensor:
    """(out, in) int8 to (out, words) int32; the first step stands in the lowest bits; the least is stored as 0."""
    each = 32 // bits
    plain = (steps.to(torch.int64) + 2 ** (bits - 1)).numpy().astype(np.uint32)
    plain = np.pad(plain, ((0, 0), (0, -plain.shape[1] % each)))
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    words = np.bitwise_or.reduce(plain.reshape(len(plain), -1, each) << shifts, axis=2)
    return torch.from_numpy(words.view(np.int32))


def unpack(words: torch.Tensor, scales: torch.Tensor, shape: torch.Tensor, bits: int) -> torch.Tensor:
    """(out, in) float32. Raises ValueError where the parts do not belong together."""
    each = 32 // bits
    rows, width = (int(length) for length in shape)
    if words.dtype is not torch.int32 or tuple(words.shape) != (rows, -(-width // each)):
        raise ValueError(f"{tuple(words.shape)} words of {words.dtype} for a matrix of {rows} x {width}")
    if scales.ndim != 2 or scales.shape[0] != rows or not scales.shape[1] or width % scales.shape[1]:
        raise ValueError(f"{tuple(scales.shape)} scales for a matrix of {rows} x {width}")
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    plain = (words.numpy().view(np.uint32)[:, :, None] >> shifts) & np.uint32(2**bits - 1)
    steps = torch.from_numpy(plain.reshape(rows, -1)[:, :width].astype(np.float32)) - 2 ** (bits - 1)
    grouped: torch.Tensor = steps.reshape(rows, scales.shape[1], -1) * scales.float()[:, :, None]
    return grouped.reshape(rows, width)
