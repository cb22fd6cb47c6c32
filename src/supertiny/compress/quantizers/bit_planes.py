"""Sums of signs: each weight is +-a1 +-a2 ..., so that a table of look-ups can take the place of products.

Paper: Park et al., LUT-GEMM, 2022, arXiv:2206.09557; binary coding by Xu et al., 2018, arXiv:1802.00150.
Use when: 2 or 3 bits for kernels that look sums up; at 4 bits even grids are as good.
Differs from the paper: the alternation starts from greedy planes and from an even grid, and keeps the better group by
group. There is no look-up kernel here: this is the format and its fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from supertiny.compress.inputs import Inputs
from supertiny.compress.packed import Packed, pack_bits
from supertiny.compress.quantizers._grids import halved, matrix_of, nearest_level

_CHUNK = 1 << 14  # groups that are fitted at a time


@dataclass(frozen=True)
class BitPlanes:
    """Alternates the nearest of 2^bits sums for each weight, and least squares for the scales of the planes."""

    bits: Annotated[int, Field(ge=1, le=4)] = 3
    """Planes of signs; their scales take 16 * bits / group more."""
    group: Annotated[int, Field(ge=0)] = 64
    """Neighbouring weights of a row that share scales; must divide the row, 0 is the whole row."""
    rounds: Annotated[int, Field(ge=1)] = 15
    """Times that both steps are done."""

    zeroless = True  # zero is no point of its grids

    def quantize(self, weight: torch.Tensor, inputs: Inputs | None) -> Packed:
        """Does not look at the inputs."""
        matrix, group = matrix_of(weight, self.group, "bit_planes")
        parts = [self._fitted(part) for part in torch.split(matrix.reshape(-1, group), _CHUNK)]
        signs, scales = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        height, width = weight.shape
        tensors = {
            "signs": pack_bits(signs.permute(2, 0, 1) > 0, 1),
            "scales": scales.half().reshape(height, -1, self.bits),
        }
        settings = {"bits": self.bits, "group": group}
        return Packed("planes", (height, width), str(weight.dtype).removeprefix("torch."), settings, tensors)

    def _fitted(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signs (groups, group, bits) and scales (groups, bits) of the better start."""
        best = torch.zeros(len(groups), self.bits, device=groups.device)
        least = torch.full((len(groups), 1), torch.inf, device=groups.device)
        for scales in (self._greedy(groups), self._even(groups), self._levels(groups)):
            for _ in range(self.rounds + 1):
                stored = halved(scales)
                signs, error = self._nearest(groups, stored)
                better = error < least
                best, least = torch.where(better, stored, best), torch.where(better, error, least)
                scales = _least_squares(groups, signs)
        return self._nearest(groups, best)[0], best

    def _nearest(self, groups: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signs (groups, group, bits) of the nearest sums, and the squared error (groups, 1)."""
        signs = torch.tensor([-1.0, 1.0], device=groups.device)
        patterns = torch.cartesian_prod(*[signs] * self.bits).reshape(-1, self.bits)
        levels = torch.zeros(len(groups), len(patterns), device=groups.device)
        for place in range(self.bits):  # in the order in which they are read back: floats do not add up in any order
            levels += scales[:, place, None] * patterns[:, place]
        places, values = nearest_level(groups, levels)
        return patterns[places], (groups - values).square_().sum(dim=1, keepdim=True)

    def _greedy(self, groups: torch.Tensor) -> torch.Tensor:
        rest, scales = groups.clone(), []
        for _ in range(self.bits):
            scales.append(rest.abs().mean(dim=1, keepdim=True))
            rest = rest - torch.where(rest >= 0, 1.0, -1.0) * scales[-1]
        return torch.cat(scales, dim=1)

    def _even(self, groups: torch.Tensor) -> torch.Tensor:
        """An even grid: scale * (code - middle) has scales of scale * 2^i / 2."""
        step = 2 * groups.abs().amax(dim=1, keepdim=True) / ((1 << self.bits) - 1)
        return step * 2.0 ** torch.arange(self.bits - 2, -2, -1, device=groups.device)

    def _levels(self, groups: torch.Tensor) -> torch.Tensor:
        """Scales read off the largest magnitudes, as they stand where the weights are such sums already.

        The largest is all scales together; flipping some takes twice their sum away. So, downwards, each distance that
        is no sum of those before is a scale of its own.
        """
        rest = groups.abs()
        top = rest.amax(dim=1, keepdim=True)
        scales = torch.zeros(len(groups), self.bits, device=groups.device)
        count = torch.zeros(len(groups), 1, dtype=torch.long, device=groups.device)
        sums, left = torch.zeros_like(top), top
        for _ in range(1 << (self.bits - 1)):
            rest = torch.where(rest < left, rest, 0.0)
            left = rest.amax(dim=1, keepdim=True)
            apart = (top - left) / 2
            known = ((sums - apart).abs() < 1e-4 * top).any(dim=1, keepdim=True)
            new = ~known & (count < self.bits - 1) & (left > 0)
            scales.scatter_add_(1, count, torch.where(new, apart, 0.0))
            sums = torch.cat([sums, torch.where(new, sums + apart, torch.inf)], dim=1)
            count = count + new.long()
        scales.scatter_add_(1, count, top - scales.sum(dim=1, keepdim=True))
        return scales


def _least_squares(groups: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """(groups, bits) scales for given signs (groups, group, bits); a small ridge parts planes that are alike."""
    square = signs.mT @ signs
    ridge = 1e-4 * signs.shape[1] * torch.eye(signs.shape[2], device=groups.device)
    scales: torch.Tensor = torch.linalg.solve(square + ridge, (signs.mT @ groups[:, :, None]))[:, :, 0]
    return scales
