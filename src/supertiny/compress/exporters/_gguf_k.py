"""llama.cpp's K types: blocks of 256 weights, whose small groups have scales that are quantized themselves.

The layout is llama.cpp's; the fit of scale and minimum is by weighted least squares over a few roundings.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
BLOCK = 256
_AT_ONCE = 1 << 12  # blocks that are worked on together
_TRIES = 12


def packed(matrix: Array, kind: str) -> Array:
    """(rows, bytes) uint8 of a float32 matrix (rows, columns); columns must be a multiple of 256."""
    blocks = np.ascontiguousarray(matrix, dtype=np.float32).reshape(-1, BLOCK)
    pack = {"q4_k": _affine, "q5_k": _affine, "q6_k": _symmetric}[kind]
    parts = [pack(blocks[start : start + _AT_ONCE], kind) for start in range(0, len(blocks), _AT_ONCE)]
    return np.concatenate(parts).reshape(*matrix.shape[:-1], -1)


def _affine(blocks: Array, kind: str) -> Array:
    """q4_k, q5_k: eight groups of 32; weight = scale * step - minimum, scale and minimum of six bits."""
    most = 15 if kind == "q4_k" else 31
    groups = blocks.reshape(len(blocks), 8, 32)
    scales, minima = _fit(groups, most)
    large, small = (_half(part.max(axis=1, keepdims=True) / 63) for part in (scales, minima))
    scales_of, minima_of = (_shared(part, top).astype(np.uint8) for part, top in ((scales, large), (minima, small)))
    scale, least = (large * scales_of)[..., None], (small * minima_of)[..., None]
    steps = np.rint((groups + least) * _inverse(scale)).clip(0, most).astype(np.uint8)
    low, high = (part & 15 for part in (scales_of, minima_of)), (part >> 4 for part in (scales_of, minima_of))
    (low_scale, low_least), (high_scale, high_least) = low, high
    bits = [
        scales_of[:, :4] | (high_scale[:, 4:] << 6),
        minima_of[:, :4] | (high_least[:, 4:] << 6),
        low_scale[:, 4:] | (low_least[:, 4:] << 4),
    ]
    pairs = (steps & 15).reshape(len(blocks), 4, 2, 32)
    nibbles = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(len(blocks), -1)
    fifth = [np.packbits(steps >> 4, axis=1, bitorder="little").reshape(len(blocks), -1)] if kind == "q5_k" else []
    return np.concatenate([_bytes(large), _bytes(small), *bits, *fifth, nibbles], axis=1)


def _symmetric(blocks: Array, kind: str) -> Array:
    """q6_k: sixteen groups of 16; weight = scale * step, steps from -32 to 31, scale of eight bits."""
    groups = blocks.reshape(len(blocks), 16, 16)
    weight = groups * groups
    top = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)
    best, scales = np.full(groups.shape[:2], -1.0, np.float32), np.zeros(groups.shape[:2], np.float32)
    for levels in np.linspace(29, 33, _TRIES, dtype=np.float32):
        steps = np.rint(groups * -levels * _inverse(top)).clip(-32, 31)
        along, length = (weight * groups * steps).sum(axis=2), (weight * steps * steps).sum(axis=2)
        gain = along * along * _inverse(length)  # what least squares takes off the weighted error
        better = gain > best
        best, scales = np.where(better, gain, best), np.where(better, along * _inverse(length), scales)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)
    large = _half(largest / -128)
    scales_of = np.rint(scales * _inverse(large)).clip(-128, 127).astype(np.int8)
    steps = np.rint(groups * _inverse((large * scales_of)[..., None])).clip(-32, 31)
    steps = (steps + 32).astype(np.uint8).reshape(len(blocks), 2, 4, 32)
    low, high = steps & 15, steps >> 4
    nibbles = (low[:, :, :2] | (low[:, :, 2:] << 4)).reshape(len(blocks), -1)
    pairs = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    return np.concatenate([nibbles, pairs.reshape(len(blocks), -1), scales_of.view(np.uint8), _bytes(large)], axis=1)


def _fit(groups: Array, most: int) -> tuple[Array, Array]:
    """(blocks, groups) scales and minima (>= 0, subtracted) of the least weighted squared error that was tried."""
    weight = np.sqrt((groups * groups).mean(axis=2, keepdims=True)) + np.abs(groups)
    least = np.minimum(groups.min(axis=2, keepdims=True), 0)
    span = groups.max(axis=2, keepdims=True) - least
    best = np.full(groups.shape[:2], np.inf, np.float32)
    scales, minima = np.zeros_like(best), np.zeros_like(best)
    total = weight.sum(axis=2)
    mean = (weight * groups).sum(axis=2)
    for levels in np.linspace(most - 1, most + 0.8, _TRIES, dtype=np.float32):
        steps = np.rint((groups - least) * levels * _inverse(span)).clip(0, most)
        first, second = (weight * steps).sum(axis=2), (weight * steps * steps).sum(axis=2)
        along = (weight * steps * groups).sum(axis=2)
        determinant = total * second - first * first
        scale = (total * along - first * mean) * _inverse(determinant)
        minimum = (second * mean - first * along) * _inverse(determinant)
        bounded = (minimum > 0) | (determinant <= 0)  # a minimum above zero cannot be stored
        scale = np.where(bounded, along * _inverse(second), scale).clip(0)
        minimum = np.where(bounded, 0, minimum)
        restored = scale[..., None] * steps + minimum[..., None]
        error = (weight * (restored - groups) ** 2).sum(axis=2)
        better = error < best
        best = np.where(better, error, best)
        scales, minima = np.where(better, scale, scales), np.where(better, -minimum, minima)
    return scales, minima


def _shared(values: Array, unit: Array) -> Array:
    shared: Array = np.rint(values * _inverse(unit)).clip(0, 63)
    return shared


def _half(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float32)


def _bytes(head: Array) -> Array:
    return head.astype(np.float16).view(np.uint8)


def _inverse(values: Array) -> Array:
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / values
    return np.where(np.isfinite(inverse), inverse, np.float32(0))
