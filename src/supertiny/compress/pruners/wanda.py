"""Removes weights that are small together with what flows into them, row by row.

Paper: Sun et al., A Simple and Effective Pruning Approach, 2023, arXiv:2306.11695.
Use when: first choice where calibration rows are at hand; takes a second, changes no weight that stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from supertiny.compress.inputs import Inputs
from supertiny.compress.pruners._masks import lowest, matrix_of, pattern_of
from supertiny.core.errors import UserError


@dataclass(frozen=True)
class Wanda:
    """Score of a weight: |w| times the root mean square of its input."""

    pattern: str = ""
    """"n:m" keeps n of each m neighbours of a row; empty is unstructured, with the same share in each row."""

    needs = ("calibration",)

    def __post_init__(self) -> None:
        pattern_of(self.pattern)

    def prune(self, weight: torch.Tensor, inputs: Inputs | None, sparsity: float) -> torch.Tensor:
        """Raises UserError where there are no inputs."""
        if inputs is None:
            raise UserError("wanda needs calibration rows", "use magnitude where there are none")
        matrix = matrix_of(weight, sparsity, self.pattern, "wanda")
        inputs.check(weight)
        scores = matrix.abs() * inputs.second.sqrt()
        return weight.detach().masked_fill(lowest(scores, sparsity, self.pattern, by_row=True), 0)
