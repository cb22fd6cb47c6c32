"""Removes weights column by column; the columns still to come make up for what was lost.

Paper: Frantar and Alistarh, SparseGPT, 2023, arXiv:2301.00774.
Use when: half or more of the weights shall go, or a pattern is asked for, with calibration rows at hand.
Differs from the paper: each block of columns has its exact share of zeros, counted along, so that the total is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from supertiny.compress.inputs import Inputs
from supertiny.compress.pruners._masks import lowest, matrix_of, pattern_of
from supertiny.core.errors import UserError

_BLOCK = 128  # columns among which weights are compared


@dataclass(frozen=True)
class Sparsegpt:
    """Score of a weight: (w / U_jj)^2, where inverse gram = U^T U; U's row j times w / U_jj is taken from the rest."""

    pattern: str = ""
    """"n:m" keeps n of each m neighbours of a row; empty is unstructured."""
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the mean diagonal that is added to the gram matrix, so that it can be inverted."""

    needs = ("calibration",)

    def __post_init__(self) -> None:
        pattern_of(self.pattern)

    def prune(self, weight: torch.Tensor, inputs: Inputs | None, sparsity: float) -> torch.Tensor:
        """Raises UserError where there is no gram matrix."""
        if inputs is None:
            raise UserError("sparsegpt needs calibration rows", "use magnitude where there are none")
        matrix = matrix_of(weight, sparsity, self.pattern, "sparsegpt")
        inputs.check(weight)
        inputs.needed_gram("sparsegpt")
        factor = inputs.factor(self.damping)
        parts = pattern_of(self.pattern)
        block = _BLOCK if parts is None else max(parts[1], _BLOCK // parts[1] * parts[1])
        (height, width), removed = matrix.shape, 0
        columns, gone = matrix.T.contiguous(), torch.zeros(width, height, dtype=torch.bool, device=matrix.device)
        for start in range(0, width, block):
            end = min(start + block, width)
            share = (round(sparsity * height * end) - removed) / (height * (end - start))
            part = self._mask(columns[start:end], factor.diagonal()[start:end], share)
            removed += int(part.sum())
            gone[start:end] = part
            _compensate(columns, part, factor, start, end)
        return columns.T.to(weight.dtype).masked_fill(gone.T, 0)

    def _mask(self, columns: torch.Tensor, diagonal: torch.Tensor, share: float) -> torch.Tensor:
        """(columns, out) true where a weight goes."""
        scores = (columns / diagonal[:, None]).square().T.contiguous()
        return lowest(scores, share, self.pattern).T


def _compensate(columns: torch.Tensor, gone: torch.Tensor, factor: torch.Tensor, start: int, end: int) -> None:
    """Zeros the weights of a block (in, out) and takes what that costs from all that follow, in place."""
    errors = torch.zeros_like(columns[start:end])
    for place in range(start, end):
        errors[place - start] = columns[place] * gone[place - start] / factor[place, place]
        columns[place].masked_fill_(gone[place - start], 0)
        columns[place + 1 : end].addr_(factor[place, place + 1 : end], errors[place - start], alpha=-1)
    columns[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
