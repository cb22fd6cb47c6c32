"""Rounds each weight to the nearest point of a grid that reaches over its group's range.

Use when: a baseline is wanted, or there is nothing to calibrate with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from supertiny.compress.inputs import Inputs
from supertiny.compress.packed import Packed
from supertiny.compress.quantizers._grids import Grid, Zero, matrix_of


@dataclass(frozen=True)
class Rtn:
    """Bits per weight: `bits` + 16 / group for the scale, and `bits` / group or 16 / group more for a zero."""

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    """Bits of a weight's code."""
    group: Annotated[int, Field(ge=0)] = 64
    """Neighbouring weights of a row that share a scale; must divide the row, 0 is the whole row."""
    zero: Zero = "middle"
    """Where zero stands: in the `middle` of the codes, at an `integer` code of each group, or at an `offset`."""

    @property
    def zeroless(self) -> bool:
        """Whether zero is no point of its grids, so that what a pruner removed comes back."""
        return self.zero == "offset"

    def quantize(self, weight: torch.Tensor, inputs: Inputs | None) -> Packed:
        """Does not look at the inputs."""
        matrix, group = matrix_of(weight, self.group, "rtn")
        grid = Grid(self.bits, group, self.zero)
        groups = grid.groups(matrix)
        codes, points = grid.recovered(groups) or grid.plain(groups)
        return grid.packed(*grid.settled(codes, points), weight)
