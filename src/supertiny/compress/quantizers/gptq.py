"""Rounds column by column; the columns still to come make up for what was lost, as the inputs' correlations tell.

Paper: Frantar et al., GPTQ, 2022, arXiv:2210.17323.
Use when: 2 to 5 bits, with calibration rows at hand; `grid: q4_0` gives weights that llama.cpp packs without loss.
Differs from the paper: scales are searched for the least error and rounded before they are used; with `ordered` they
are fixed beforehand, so that groups stay neighbours; a row that plain rounding keeps better is rounded plainly. After a
pruner, zeros stay zeros, and what follows makes up for it (SparseGPT's joint way); an `offset` grid, also q4_1, has no
point for zero, so there they come back as small weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from supertiny.compress.inputs import Inputs
from supertiny.compress.packed import Packed
from supertiny.compress.quantizers._grids import Grid, LlamaType, Points, Zero, matrix_of
from supertiny.core.errors import UserError

_Way = tuple[Points, torch.Tensor]
_BLOCK = 64  # most columns between two updates of all that follow


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

    @property
    def zeroless(self) -> bool:
        """Whether zero is no point of its grids, so that what a pruner removed comes back."""
        return self._grid.zero == "offset"

    @property
    def _grid(self) -> Grid:
        return Grid.of_type(self.grid) if self.grid else Grid(self.bits, self.group, self.zero)

    def quantize(self, weight: torch.Tensor, inputs: Inputs | None) -> Packed:
        """Raises UserError where there is no gram matrix, or groups do not fill a row."""
        grid = self._grid
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
    order, factor = inputs.order(ordered), inputs.factor(damping, ordered)
    pivots = factor.diagonal()
    cost = pivots.square().reciprocal()
    cost = cost / cost.mean()
    share = factor / pivots[:, None]  # of what a column lost that each column after it takes over
    columns = matrix.T[order].contiguous()  # (in, out): a column of the matrix is one run of memory
    # Without a pruner zeros are weights as others: one of eight that were trained on q4_0's grid is exactly zero.
    gone = columns == 0 if inputs.pruned and grid.zero != "offset" else None
    fixed = _per_group(grid.fitted(grid.groups(matrix)), height) if ordered else None
    steps, chosen, places = torch.empty_like(columns), list[_Way](), order.tolist()
    for start, end in _spans(width, grid.group):
        if fixed is None and start % grid.group == 0:
            ahead = slice(start, start + grid.group)
            alive = columns[ahead] if gone is None else columns[ahead].masked_fill(gone[ahead], 0)
            chosen += _per_group(grid.fitted(alive.T, cost[ahead]), height)
        lost = torch.empty(end - start, height, device=matrix.device)
        for place in range(start, end):
            points, inverse = fixed[places[place] // grid.group] if fixed else chosen[-1]
            now = torch.addmv(columns[place], lost[: place - start].T, share[start:place, place], alpha=-1)
            step = grid.steps(now, points, inverse, out=steps[places[place]])
            if gone is not None:
                step.masked_fill_(gone[place], 0)
            torch.addcmul(now, step, points.scale, value=-1, out=lost[place - start])
            if grid.zero == "offset":
                lost[place - start] -= points.offset
        columns[end:].addmm_(share[start:end, end:].T, lost, alpha=-1)
    joined = _joined(fixed or chosen)
    return grid.groups(steps.T.contiguous()) - joined.lowest, joined


def _spans(width: int, group: int) -> Iterator[tuple[int, int]]:
    """Columns between two updates of all that follow: each group, in parts where it is large."""
    for first in range(0, width, group):
        end = first + group
        yield from ((start, min(start + _BLOCK, end)) for start in range(first, end, _BLOCK))


def _per_group(points: Points, height: int) -> list[_Way]:
    """Of points in the order of `Grid.groups`, those of each group of columns, (out,), and their inverse."""
    parts = [part.reshape(height, -1).T.contiguous() for part in (*points, points.inverse())]
    return [(Points(*group), inverse) for *group, inverse in zip(*parts, strict=True)]


def _joined(ways: Sequence[_Way]) -> Points:
    """Undoes `_per_group`."""
    points = zip(*(points for points, _ in ways), strict=True)
    return Points(*(torch.stack(parts, dim=1).reshape(-1, 1) for parts in points))
