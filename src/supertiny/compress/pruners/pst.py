"""Learns which weights go with few numbers: a low-rank matrix, one number a row and one a column.

Paper: Li et al., Parameter-Efficient Sparsity (PST), 2022, arXiv:2205.11005.
Use when: there is a recovery anyway, so that mask and weights can be learned together at the memory of LoRA.
Differs from the paper: without training, the same form is fitted to what weights do to the loss (-w * gradient), or,
where no gradient was gathered, to |w| times the size of its input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch.nn.utils import parametrize

from supertiny.compress.inputs import Inputs
from supertiny.compress.pruners._masks import lowest, matrix_of, pattern_of
from supertiny.core.errors import UserError


@dataclass(frozen=True)
class Pst:
    """Score of a weight: |w| + low * (A B) + lines * (row + column); the lowest go."""

    pattern: str = ""
    """"n:m" keeps n of each m neighbours of a row; empty is unstructured."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Width of A B and of the weights' own U V."""
    low: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the low-rank part."""
    lines: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the numbers of rows and columns."""

    needs = ("calibration",)

    def __post_init__(self) -> None:
        pattern_of(self.pattern)

    def prune(self, weight: torch.Tensor, inputs: Inputs | None, sparsity: float) -> torch.Tensor:
        """Raises UserError where there are neither inputs nor a gradient."""
        if inputs is None:
            raise UserError("pst needs calibration rows", "use magnitude where there are none")
        matrix = matrix_of(weight, sparsity, self.pattern, "pst")
        inputs.check(weight)
        # What the loss would rise by without the weight, to first order; else what its output would miss.
        slope = inputs.gradient
        found = matrix.abs() * inputs.second.sqrt() if slope is None else -matrix * slope.float()
        size = matrix.abs().mean()
        scores = matrix.abs() + self._fitted(found / found.abs().mean().clamp_min(1e-30)) * size
        return weight.detach().masked_fill(lowest(scores, sparsity, self.pattern), 0)

    def attach(self, layer: torch.nn.Linear, seed: int, sparsity: float) -> None:
        """From now on the layer computes with its mask, and learns the mask and a low-rank change of its weight."""
        matrix = matrix_of(layer.weight, sparsity, self.pattern, "pst")
        module = _Masked(matrix, self, sparsity, seed).to(layer.weight.device)
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", module)

    def bake(self, layer: torch.nn.Linear) -> None:
        """The layer is a stock one again, with the zeros that it computed with."""
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

    def _fitted(self, found: torch.Tensor) -> torch.Tensor:
        """The nearest matrix of the form: rows and columns first, then the best of that rank of what is left."""
        rows, columns = found.mean(dim=1, keepdim=True), found.mean(dim=0, keepdim=True)
        lines = rows + columns - found.mean()
        left, sizes, right = torch.linalg.svd(found - lines, full_matrices=False)
        rank = min(self.rank, len(sizes))
        fitted: torch.Tensor = self.lines * lines + self.low * (left[:, :rank] * sizes[:rank]) @ right[:rank]
        return fitted


class _Masked(torch.nn.Module):
    def __init__(self, matrix: torch.Tensor, method: Pst, sparsity: float, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        height, width = matrix.shape
        self.method, self.sparsity = method, sparsity
        # Zeros on one side of each product: at the start scores are magnitudes and the weight is what it was.
        self.up = torch.nn.Parameter(torch.zeros(height, method.rank))
        self.down = torch.nn.Parameter(torch.randn(method.rank, width, generator=draw) / width**0.5)
        self.left = torch.nn.Parameter(torch.zeros(height, method.rank))
        self.right = torch.nn.Parameter(torch.randn(method.rank, width, generator=draw) / width**0.5)
        self.rows, self.columns = (torch.nn.Parameter(torch.zeros(*side)) for side in ((height, 1), (1, width)))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The mask passes its gradient to the scores as if it were them."""
        moved = weight.float() + self.up @ self.down
        learned = self.method.low * (self.left @ self.right) + self.method.lines * (self.rows + self.columns)
        scores = (moved.abs() + learned).detach()
        stays = (~lowest(scores, self.sparsity, self.method.pattern)).float()
        mask = stays + (learned - learned.detach())
        return (moved * mask).to(weight.dtype)
