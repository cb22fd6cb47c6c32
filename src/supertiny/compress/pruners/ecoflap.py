"""Gives each matrix a sparsity of its own by what its weights do to the loss, then prunes within as wanda does.

Paper: Sung et al., ECoFLaP, 2023, arXiv:2310.02998.
Use when: more than half of the weights shall go, and layers differ in how much they matter.
Differs from the paper: totals are exact, by water-filling between the limits; the perturbed matrix is put back bit for
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from supertiny.compress.inputs import Inputs
from supertiny.compress.pruners._masks import lowest, matrix_of, pattern_of
from supertiny.core.errors import UserError


@dataclass(frozen=True)
class Ecoflap:
    """Score of a matrix: sum of |w| times |slope| of the loss along random directions; no gradient is taken."""

    pattern: str = ""
    """"n:m" keeps n of each m neighbours of a row, the same share everywhere; empty is unstructured."""
    most: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Largest sparsity of a single matrix; must not be below what is asked for on the whole."""
    step: Annotated[float, Field(gt=0)] = 1e-3
    """How far weights are moved, in the weights' own unit."""
    directions: Annotated[int, Field(ge=1)] = 4
    """Random directions for each matrix; two evaluations of the loss each."""

    needs = ("calibration",)

    def __post_init__(self) -> None:
        pattern_of(self.pattern)

    def prune(self, weight: torch.Tensor, inputs: Inputs | None, sparsity: float) -> torch.Tensor:
        """As wanda; `sparsity` is this matrix's own. Raises UserError where there are no inputs."""
        if inputs is None:
            raise UserError("ecoflap needs calibration rows", "use magnitude where there are none")
        matrix = matrix_of(weight, sparsity, self.pattern, "ecoflap")
        inputs.check(weight)
        scores = matrix.abs() * inputs.second.sqrt()
        return weight.detach().masked_fill(lowest(scores, sparsity, self.pattern, by_row=True), 0)

    @torch.no_grad()
    def scores(self, matrices: Mapping[str, torch.Tensor], loss: Callable[[], float], seed: int) -> dict[str, float]:
        """What each matrix does to the loss. Each is moved there and back in turn, and is afterwards what it was."""
        draw = torch.Generator().manual_seed(seed)
        found = {}
        for name, matrix in matrices.items():
            before, slope = matrix.detach().clone(), 0.0
            try:
                for _ in range(self.directions):
                    way = torch.randn(matrix.shape, generator=draw).to(matrix.device)
                    ends = []
                    for sign in (1, -1):
                        matrix.copy_((before.float() + sign * self.step * way).to(matrix.dtype))
                        ends.append(loss())
                    slope += abs(ends[0] - ends[1]) / (2 * self.step * self.directions)
            finally:
                matrix.copy_(before)
            found[name] = float(before.float().abs().sum()) * slope
        return found

    def sparsities(self, scores: Mapping[str, float], sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
        """The share of zeros of each matrix, so that the whole has exactly `sparsity`, rounded to whole weights.

        What stays of a matrix goes with its score, between 1 - `most` and all of it. Raises UserError where `most` is
        below what is asked for, or scores are not finite.
        """
        if sparsity > self.most:
            raise UserError(f"ecoflap: `most` is {self.most}, less than the sparsity {sparsity}", "raise `most`")
        values = torch.tensor([scores[name] for name in sizes], dtype=torch.float64)
        if not bool(values.isfinite().all()) or bool((values < 0).any()):
            raise UserError("ecoflap: the loss is not finite on the calibration rows", "lower `step`")
        if self.pattern or not bool(values.any()):
            return dict.fromkeys(sizes, sparsity)
        counts = torch.tensor(list(sizes.values()), dtype=torch.float64)
        least = counts - (counts * self.most).ceil()
        wanted = int(counts.sum()) - round(sparsity * int(counts.sum()))
        low, high = 0.0, float((counts / values.clamp_min(1e-300)).max())
        for _ in range(200):
            middle = (low + high) / 2
            enough = float((middle * values).clamp(least, counts).sum()) >= wanted
            low, high = (low, middle) if enough else (middle, high)
        kept = torch.minimum((high * values).clamp(least, counts).floor(), counts).long()
        floors = dict(zip(sizes, least.long().tolist(), strict=True))
        return _exact(dict(zip(sizes, kept.tolist(), strict=True)), floors, sizes, wanted)


def _exact(kept: dict[str, int], floors: Mapping[str, int], sizes: Mapping[str, int], wanted: int) -> dict[str, float]:
    """Shares of zeros; the few weights that rounding left over go where there is room, the largest matrix first."""
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        missing = wanted - sum(kept.values())
        kept[name] += max(floors[name] - kept[name], min(sizes[name] - kept[name], missing))
    return {name: (size - kept[name]) / size for name, size in sizes.items()}
