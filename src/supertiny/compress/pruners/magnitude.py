"""Removes the smallest weights.

Paper: Han et al., Learning both Weights and Connections, 2015, arXiv:1506.02626.
Use when: a baseline is wanted, or there is nothing to calibrate with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from supertiny.compress.inputs import Inputs
from supertiny.compress.pruners._masks import lowest, matrix_of, pattern_of


@dataclass(frozen=True)
class Magnitude:
    """Compares all weights of the matrix, or of each run of a pattern."""

    pattern: str = ""
    """"n:m" keeps n of each m neighbours of a row; empty is unstructured."""

    def __post_init__(self) -> None:
        pattern_of(self.pattern)

    def prune(self, weight: torch.Tensor, inputs: Inputs | None, sparsity: float) -> torch.Tensor:
        """Does not look at the inputs."""
        matrix = matrix_of(weight, sparsity, self.pattern, "magnitude")
        return weight.detach().masked_fill(lowest(matrix.abs(), sparsity, self.pattern), 0)
