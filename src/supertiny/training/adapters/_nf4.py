"""Weights in 4-bit NormalFloat: sixteen levels at quantiles of a Gaussian, a scale for each block."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

# Levels of QLoRA's appendix: quantiles of N(0, 1), uneven on both sides so that zero is one of them.
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_SCALES = 256  # scales of a block that are quantized together


class QuantizedLinear(torch.nn.Module):
    """A frozen linear layer whose weight (out, in) is held as 4-bit codes and restored for each use.

    Restored for the backward pass as well: kept between the two, restored weights would take all that was saved.
    `weights_held` is their number, which no parameter shows.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    scale_codes: torch.Tensor
    scale_middle: torch.Tensor
    levels: torch.Tensor

    def __init__(self, layer: torch.nn.Linear, block: int, twice: bool) -> None:
        super().__init__()
        self.shape, self.block, self.twice = tuple(layer.weight.shape), block, twice
        self.weights_held = layer.weight.numel()
        self.bias = layer.bias
        levels = torch.tensor(LEVELS, device=layer.weight.device)
        flat = _padded(layer.weight.detach().float().reshape(-1), max(block, 2)).view(-1, block)
        largest = flat.abs().amax(dim=1)
        middle = largest.mean() if twice else largest.new_zeros(())
        if twice:
            away = _padded(largest - middle, _SCALES).view(-1, _SCALES)
            coarse = away.abs().amax(dim=1)
            scale_codes = (127 * away / coarse.clamp_min(1e-20)[:, None]).round().to(torch.int8)
        else:
            scale_codes, coarse = largest.new_empty(0, dtype=torch.int8), largest
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("scales", coarse)
        self.register_buffer("scale_codes", scale_codes)
        self.register_buffer("scale_middle", middle)
        # Levels are chosen by the scales that are kept, so that quantizing a restored weight gives it again.
        shares = flat / self._largest(len(flat)).clamp_min(1e-20)[:, None]
        nearest = torch.bucketize(shares, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(-1)
        self.register_buffer("codes", nearest[::2] << 4 | nearest[1::2])

    def _largest(self, blocks: int) -> torch.Tensor:
        """(blocks,) what the level 1 stands for."""
        if not self.twice:
            return self.scales
        away = self.scale_codes.float() * (self.scales / 127)[:, None]
        return (self.scale_middle + away.view(-1)[:blocks]).clamp_min(0)

    def weight_as(self, dtype: torch.dtype) -> torch.Tensor:
        """(out, in), restored."""
        places = torch.stack((self.codes >> 4, self.codes & 15), dim=1).view(-1, self.block)
        values = self.levels[places.int()] * self._largest(len(places))[:, None]
        rows, columns = self.shape
        return values.view(-1)[: rows * columns].view(rows, columns).to(dtype)

    @property
    def bytes(self) -> int:
        """What the weight takes."""
        kept = (self.codes, self.scales, self.scale_codes, self.scale_middle)
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return product

    def restored(self, dtype: torch.dtype) -> torch.nn.Linear:
        """A stock layer of the same weight."""
        rows, columns = self.shape
        layer = torch.nn.Linear(columns, rows, bias=False, device="meta")
        layer.weight = torch.nn.Parameter(self.weight_as(dtype))
        layer.bias = self.bias
        return layer


class _Product(torch.autograd.Function):
    """x @ weight.T + bias, for frozen weight and bias."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight_as(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None]:
        (slope,) = slopes
        return slope @ ctx.layer.weight_as(slope.dtype), None


def _padded(flat: torch.Tensor, block: int) -> torch.Tensor:
    return F.pad(flat, (0, -len(flat) % block))
