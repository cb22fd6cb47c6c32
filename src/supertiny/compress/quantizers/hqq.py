"""Fits each group's offset so that few weights are far off, with a norm below one; looks at weights alone.

Paper: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023, mobiusml.github.io/hqq_blog.
Use when: 3 or 4 bits without calibration rows, and the weights have outliers.
Differs from the paper: errors are shrunk in units of the group's step, the best round is kept for each group by itself,
and stored numbers are rounded as they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from supertiny.compress.inputs import Inputs
from supertiny.compress.packed import Packed
from supertiny.compress.quantizers._grids import Grid, Points, halved, matrix_of


@dataclass(frozen=True)
class Hqq:
    """Alternates: errors e shrunk towards zero, then the offset that best explains weight - e."""

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    """Bits of a weight's code; scale and offset take 32 / group more."""
    group: Annotated[int, Field(ge=0)] = 64
    """Neighbouring weights of a row that share a scale; must divide the row, 0 is the whole row."""
    rounds: Annotated[int, Field(ge=1)] = 20
    """Times that both steps are done."""
    norm: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """p of the error's norm: the smaller, the less outliers count."""
    sharpness: Annotated[float, Field(gt=0)] = 10.0
    """Weight of the quadratic half at the beginning, in units of a group's step; grows by 1 % each round."""

    zeroless = True  # zero is no point of its grids

    def quantize(self, weight: torch.Tensor, inputs: Inputs | None) -> Packed:
        """Does not look at the inputs."""
        matrix, group = matrix_of(weight, self.group, "hqq")
        grid = Grid(self.bits, group, "offset")
        groups = grid.groups(matrix)
        known = grid.recovered(groups)
        return grid.packed(*grid.settled(*(known or self._fitted(groups, grid))), weight)

    def _fitted(self, groups: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, Points]:
        codes, points = grid.plain(groups)
        best, least = points, self._lost(groups, codes, points, grid)
        sharpness = self.sharpness
        unit = points.scale.clamp_min(1e-30)  # so that the shrinking does not depend on how large weights are
        for _ in range(self.rounds):
            error = (groups - grid.values(codes, points)) / unit
            size = error.abs()
            threshold = size.clamp_min(1e-12).pow(self.norm - 1) / sharpness
            error = error.sign() * (size - threshold).clamp_min_(0) * unit
            offset = (groups - error - points.scale * codes).mean(dim=1, keepdim=True)
            points = points._replace(offset=halved(offset))
            codes = grid.codes(groups, points)
            lost = self._lost(groups, codes, points, grid)
            better = lost < least
            least = torch.where(better, lost, least)
            best = best._replace(offset=torch.where(better, points.offset, best.offset))
            sharpness *= 1.01
        return grid.codes(groups, best), best

    def _lost(self, groups: torch.Tensor, codes: torch.Tensor, points: Points, grid: Grid) -> torch.Tensor:
        """(groups, 1) sum of |error|^p."""
        return (groups - grid.values(codes, points)).abs_().pow_(self.norm).sum(dim=1, keepdim=True)
