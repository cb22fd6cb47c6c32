"""Trains a LoRA and the grid's step sizes together, under the rounding: what is trained is what is stored.

Paper: Jeon et al., L4Q, 2024, arXiv:2402.04902; step sizes by Esser et al., LSQ, 2019, arXiv:1902.08153.
Use when: 3 or 4 bits are wanted for one task at the memory of LoRA; as a rounding without training, rtn is as good.
Differs from the paper: no learned offset, so that the result is a symmetric grid that common kernels read; the rounded
matrix is kept for the backward pass, not made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch.nn.utils import parametrize

from supertiny.compress.inputs import Inputs
from supertiny.compress.packed import Packed
from supertiny.compress.quantizers._grids import Grid, Points, halved, matrix_of


@dataclass(frozen=True)
class LsqLora:
    """step * round(clamp((weight + strength * B A) / step)); A, B and step learn, the weight does not."""

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    """Bits of a weight's code; a step takes 16 / group more."""
    group: Annotated[int, Field(ge=0)] = 64
    """Neighbouring weights of a row that share a step; must divide the row, 0 is the whole row."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Width of the LoRA."""
    strength: Annotated[float, Field(gt=0)] = 2.0
    """Factor of what the LoRA adds."""

    def quantize(self, weight: torch.Tensor, inputs: Inputs | None) -> Packed:
        """Does not look at the inputs. A matrix that was trained and baked is packed without loss."""
        matrix, group = matrix_of(weight, self.group, "lsq_lora")
        grid = Grid(self.bits, group, "middle")
        groups = grid.groups(matrix)
        return grid.packed(*(grid.recovered(groups) or self._first(groups, grid)), weight)

    def attach(self, layer: torch.nn.Linear, seed: int) -> None:
        """From now on the layer computes with rounded weights, and LoRA and steps learn in place of its weight."""
        matrix, group = matrix_of(layer.weight, self.group, "lsq_lora")
        grid = Grid(self.bits, group, "middle")
        step = self._first(grid.groups(matrix), grid)[1].scale
        module = _Stepped(step, matrix.shape, group, self, seed).to(layer.weight.device)
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", module)

    def bake(self, layer: torch.nn.Linear) -> None:
        """The layer is a stock one again, with the rounded weights that it computed with: no adapter is left."""
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

    def _first(self, groups: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, Points]:
        """Codes and points of the step that clips nothing."""
        half = 1 << (self.bits - 1)
        low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
        step = halved(torch.maximum(-low / half, high / (half - 1)).clamp_min(0))
        points = Points(step, torch.full_like(step, -half), torch.zeros_like(step))
        return grid.codes(groups, points), points


class _Stepped(torch.nn.Module):
    def __init__(self, step: torch.Tensor, shape: torch.Size, group: int, method: LsqLora, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        height, width = shape
        self.group, self.strength, self.most = group, method.strength, (1 << (method.bits - 1)) - 1
        # A group of zeros has a step of zero; one that divides is needed, in case its weights come to life.
        self.step = torch.nn.Parameter(torch.where(step > 0, step, 1e-4))
        self.down = torch.nn.Parameter(torch.randn(method.rank, width, generator=draw) / width**0.5)
        self.up = torch.nn.Parameter(torch.zeros(height, method.rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Rounding passes its gradient where nothing is clipped, so the step gets round(v) - v, or the clipped end."""
        moved = weight.float() + self.strength * (self.up @ self.down)
        kept = self.step + (halved(self.step.detach()).clamp_min(6e-8) - self.step).detach()
        within = (moved.reshape(-1, self.group) / kept).clamp(-self.most - 1, self.most)
        rounded = within + ((within + 0.5).floor().clamp(max=self.most) - within).detach()
        return (kept * rounded).reshape(weight.shape).to(weight.dtype)
