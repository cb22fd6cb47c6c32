"""What flows into a matrix on calibration rows, and what a changed matrix does to them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from supertiny.compress.inverse import inverse_factor
from supertiny.core.errors import UserError


@dataclass(frozen=True, eq=False)
class Inputs:
    """Statistics over tokens of the vectors x (in,) that a matrix (out, in) is multiplied with; all float32."""

    second: torch.Tensor
    """(in,) mean of x squared."""
    absolute: torch.Tensor
    """(in,) mean of |x|."""
    count: int
    """Tokens that were seen."""
    gram: torch.Tensor | None = None
    """(in, in) mean of x x^T; None where nobody asked for it."""
    gradient: torch.Tensor | None = None
    """(out, in) mean gradient of the task's loss by this one matrix; None where nobody asked for it."""
    pruned: bool = False
    """Whether the matrix's exact zeros are a pruner's, and must stay."""
    _factors: dict[tuple[float, bool], torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, states: torch.Tensor, gram: bool = True) -> Inputs:
        """Statistics of vectors (..., in)."""
        gathering = Gathering(states.shape[-1], gram, states.device)
        gathering.add(states)
        return gathering.inputs()

    @property
    def width(self) -> int:
        return self.second.numel()

    def of_pruned(self) -> Inputs:
        """The same for a matrix that a pruner made zeros in; both share their factors."""
        inputs = replace(self, pruned=True)
        object.__setattr__(inputs, "_factors", self._factors)
        return inputs

    def check(self, weight: torch.Tensor) -> None:
        """Raises ValueError where these are the inputs of another matrix than `weight` (out, in)."""
        if weight.ndim == 2 and self.width != weight.shape[1]:
            raise ValueError(f"inputs are {self.width} wide, the matrix is {tuple(weight.shape)}")

    def needed_gram(self, who: str) -> torch.Tensor:
        """The gram matrix. Raises UserError where it was not gathered."""
        if self.gram is None:
            raise UserError(f"{who} needs what flows into the matrix together: the gram matrix is missing")
        return self.gram

    def damped(self, share: float) -> torch.Tensor:
        """The gram matrix (in, in) in float64, made invertible: `share` of its mean diagonal is added to it.

        Columns that nothing flows into get the mean, so that they neither take nor give anything.
        """
        gram = self.needed_gram("damping").to(torch.float64, copy=True)
        diagonal = gram.diagonal()
        mean = float(diagonal.mean()) or 1.0
        diagonal += torch.where(diagonal == 0, mean, share * mean)
        return gram

    def order(self, ordered: bool) -> torch.Tensor:
        """(in,) the columns: as they stand, or those with the largest inputs first."""
        if ordered:
            return self.second.argsort(descending=True, stable=True)
        return torch.arange(self.width, device=self.second.device)

    def factor(self, share: float, ordered: bool = False) -> torch.Tensor:
        """`inverse_factor` (in, in) of the gram matrix damped by `share`, its columns in that order.

        Kept as long as these inputs are: all matrices that see them share it. Nobody may change it.
        """
        key = (share, ordered)
        if key not in self._factors:
            damped, order = self.damped(share), self.order(ordered)
            self._factors[key] = inverse_factor(damped[order][:, order] if ordered else damped)
        return self._factors[key]

    def output_error(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """(out,) mean over tokens of the squared difference that each output sees.

        Without a gram matrix inputs are taken as uncorrelated.
        """
        apart = before.float() - after.float()
        if self.gram is None:
            return apart.square() @ self.second
        return ((apart @ self.gram) * apart).sum(dim=1).clamp_min_(0)


class Gathering:
    """Sums over tokens, from which `Inputs` are made at the end."""

    def __init__(self, width: int, gram: bool = True, device: torch.device | None = None) -> None:
        self.second = torch.zeros(width, device=device)
        self.absolute = torch.zeros(width, device=device)
        self.gram = torch.zeros(width, width, device=device) if gram else None
        self.count = 0

    def add(self, states: torch.Tensor) -> None:
        """Adds vectors (..., in) of any float type."""
        rows = states.detach().reshape(-1, states.shape[-1]).float()
        if self.gram is None:
            self.second += rows.square().sum(dim=0)
        else:
            self.gram.addmm_(rows.T, rows)
        self.absolute += rows.abs().sum(dim=0)
        self.count += len(rows)

    def inputs(self) -> Inputs:
        """The means. Raises UserError where no token was seen, or what was seen is not finite."""
        if not self.count:
            raise UserError("there is no calibration token to look at", "give calibration rows")
        gram = None if self.gram is None else self.gram / self.count
        second = self.second / self.count if gram is None else gram.diagonal().clone()
        if not bool(second.isfinite().all()):
            raise UserError("what flows into a matrix on the calibration rows is not finite", "use float32 weights")
        return Inputs(second, self.absolute / self.count, self.count, gram)
