"""Rounds column by column; the columns still to come make up for what was lost, as the inputs' correlations tell.

Paper: Frantar et al., GPTQ, 2022, arXiv:2210.17323.
Use when: 2 to 5 bits, with calibration rows at hand; `grid: q4_0` gives weights that llama.cpp packs without loss.
Differs from the paper: scales are searched for the least error and rounded before they are used; with `ordered` they
are fixed beforehand, so that groups stay neighbours; a row that plain rounding keeps better is rounded plainly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from supertiny.compress.inputs import Inputs
from supertiny.compress.inverse import inverse_factor
from supertiny.compress.packed import Packed
from supertiny.compress.quantizers._grids import Grid, LlamaType, Points, Zero, matrix_of
from supertiny.core.errors import UserError

_BLOCK = 128  # columns between two updates of all that follow


@dataclass(frozen=True)
class Gptq:
    """The error of a column over the diagonal of U, inverse gram = U^T U, times U's row is taken from the rest."""

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    """Bits of a weight's code."""
    group: Annotated[int, Field(ge=0)] = 64
    """Neighbouring weights of a row that share a scale; must divide the row, 0 is the whole row."""
    zero: Zero = "middle"
    """Where zero stands: in the `middle` of the codes, at an `integer` code of each group, or at an `offset`."""
    grid: Literal["", LlamaType] = ""
    """A type of llama.cpp whose blocks the weights are fitted on, in place of `bits`, `group` and `zero`."""
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the mean diagonal that is added to the gram matrix, so that it can be inverted."""
    ordered: bool = False
    """Whether columns with the largest inputs are rounded first."""

    needs = ("calibration",)

    def quantize(self, weight: torch.Tensor, inputs: Inputs | None) -> Packed:
        """Raises UserError where there is no gram matrix, or groups do not fill a row."""
        grid = Grid.of_type(self.grid) if self.grid else Grid(self.bits, self.group, self.zero)
        matrix, group = matrix_of(weight, grid.group, "gptq")
        grid = Grid(grid.bits, group, grid.zero, grid.type)
        if inputs is None:
            raise UserError("gptq needs calibration rows", "use rtn or hqq where there are none")
        inputs.check(weight)
        inputs.needed_gram("gptq")
        groups = grid.groups(matrix)
        known = grid.recovered(groups)
        if known:
            return grid.packed(*grid.settled(*known), weight)
        fitted = grid.settled(*_compensated(matrix, inputs, grid, self.damping, self.ordered))
        plain = grid.plain(groups)
        lost, simple = (inputs.output_error(matrix, grid.values(*way).reshape(matrix.shape)) for way in (fitted, plain))
        better = (lost <= simple).repeat_interleave(matrix.shape[1] // group)[:, None]
        codes = torch.where(better, fitted[0], plain[0])
        points = Points(*(torch.where(better, new, old) for new, old in zip(fitted[1], plain[1], strict=True)))
        return grid.packed(codes, points, weight)


def _compensated(
    matrix: torch.Tensor, inputs: Inputs, grid: Grid, damping: float, ordered: bool
) -> tuple[torch.Tensor, Points]:
    """Codes (groups, group) and their points."""
    height, width = matrix.shape
    order = inputs.second.argsort(descending=True, stable=True) if ordered else torch.arange(width)
    factor = inverse_factor(inputs.damped(damping)[order][:, order])
    cost = factor.diagonal().square().reciprocal()
    cost = cost / cost.mean()
    columns = matrix.T[order].contiguous()  # (in, out): a column of the matrix is one run of memory
    fixed = _per_group(grid.fitted(grid.groups(matrix)), height) if ordered else None
    codes, chosen = torch.empty_like(columns), []
    block = max(grid.group, _BLOCK // grid.group * grid.group)
    for start in range(0, width, block):
        end = min(start + block, width)
        errors = torch.empty(end - start, height, device=matrix.device)
        for place in range(start, end):
            column = int(order[place])
            if fixed is None and place % grid.group == 0:
                ahead = slice(place, place + grid.group)
                points = grid.fitted(columns[ahead].T.contiguous(), cost[ahead])
                chosen.append(points)
            elif fixed is not None:
                points = fixed[column // grid.group]
            now = columns[place][:, None]
            code = grid.codes(now, points)
            codes[column] = code[:, 0]
            errors[place - start] = ((now - grid.values(code, points)) / factor[place, place])[:, 0]
            columns[place + 1 : end].addr_(factor[place, place + 1 : end], errors[place - start], alpha=-1)
        columns[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return grid.groups(codes.T.contiguous()), _joined(fixed or chosen)


def _per_group(points: Points, height: int) -> list[Points]:
    """Of points in the order of `Grid.groups`, those of each group of columns: (out, 1)."""
    parts = [part.reshape(height, -1) for part in points]
    return [Points(*(part[:, place, None] for part in parts)) for place in range(parts[0].shape[1])]


def _joined(points: list[Points]) -> Points:
    """Undoes `_per_group`."""
    return Points(*(torch.cat(parts, dim=1).reshape(-1, 1) for parts in zip(*points, strict=True)))
