"""Training with weights rounded to -a, 0, a, in which the zeros go on acting as a bias, and so can leave zero again.

Paper: Tequila, Trapping-free Ternary Quantization, 2025, arXiv:2509.23809.
Use when: 1.6 bits are wanted and there are very many tokens to train on; as a rounding without training it is poor.
Differs from the paper: groups of 64 in place of 128, which does not divide 576; the variants with a bias that depends
on the input are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.nn.utils import parametrize

from supertiny.compress.inputs import Inputs
from supertiny.compress.packed import Packed, pack_trits
from supertiny.compress.quantizers._grids import halved, matrix_of


@dataclass(frozen=True)
class TernaryAware:
    """a = mean |w| of the group; weights below a / 2 are zero. Bits: 1.6 + 16 / group, and 16 / in for the bias."""

    group: Annotated[int, Field(ge=0)] = 64
    """Neighbouring weights of a row that share a scale; must divide the row, 0 is the whole row."""
    bias: Annotated[float, Field(ge=0)] = 1e-3
    """Share of the weights that were rounded to zero that is added to their output; 0 needs no place for a bias."""

    def quantize(self, weight: torch.Tensor, inputs: Inputs | None) -> Packed:
        """Does not look at the inputs. The packed matrix has a `bias` (out,) that belongs to the layer's output."""
        matrix, group = matrix_of(weight, self.group, "ternary_aware")
        groups = matrix.reshape(-1, group)
        scale = _scale(groups)
        trits = _trits(groups, scale)
        height, width = weight.shape
        tensors = {"trits": pack_trits(trits), "scales": scale.half().reshape(height, -1, 1)}
        if self.bias:
            tensors["bias"] = halved(self.bias * _trapped(matrix, group)).half()
        settings = {"planes": 1, "group": group}
        return Packed("trits", (height, width), str(weight.dtype).removeprefix("torch."), settings, tensors)

    def attach(self, layer: torch.nn.Linear, seed: int) -> None:
        """From now on the layer computes with rounded weights, and the gradient reaches the ones behind them.

        Where there is a share for the bias, the layer gets one, to which its zeros add.
        """
        group = matrix_of(layer.weight, self.group, "ternary_aware")[1]
        parametrize.register_parametrization(layer, "weight", _Rounded(group))
        if self.bias:
            behind: Any = layer.parametrizations.weight.original  # type: ignore[union-attr]
            if layer.bias is None:
                layer.bias = torch.nn.Parameter(behind.new_zeros(len(behind)), requires_grad=False)
            parametrize.register_parametrization(layer, "bias", _Dead(behind, group, self.bias))

    def bake(self, layer: torch.nn.Linear) -> None:
        """The layer is a stock one again, with the rounded weights and the bias that it computed with."""
        for name in ("bias", "weight"):
            if parametrize.is_parametrized(layer, name):
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)


def _scale(groups: torch.Tensor) -> torch.Tensor:
    """(groups, 1) mean magnitude, as float16 keeps it; of weights that are ternary already, the one they have."""
    sizes = groups.abs()
    top = sizes.amax(dim=1, keepdim=True)
    ternary = ((sizes == 0) | (sizes == top)).all(dim=1, keepdim=True)
    return halved(torch.where(ternary, top, sizes.mean(dim=1, keepdim=True)))


def _trits(groups: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return groups.sign() * (groups.abs() >= scale / 2)


def _trapped(matrix: torch.Tensor, group: int) -> torch.Tensor:
    """(out,) sum of the weights that are rounded to zero; its gradient reaches these alone."""
    groups = matrix.reshape(-1, group)
    with torch.no_grad():
        dead = _trits(groups, _scale(groups)) == 0
    return (groups * dead).reshape(matrix.shape).sum(dim=1)


class _Rounded(torch.nn.Module):
    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            groups = weight.float().reshape(-1, self.group)
            scale = _scale(groups)
            rounded = (scale * _trits(groups, scale)).reshape(weight.shape).to(weight.dtype)
        through: torch.Tensor = _StraightThrough.apply(weight, rounded)  # type: ignore[no-untyped-call]
        return through


class _StraightThrough(torch.autograd.Function):
    """Forward sees the rounded weights, the gradient reaches the ones behind them."""

    @staticmethod
    def forward(context: Any, weight: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _Dead(torch.nn.Module):
    """Adds what a layer's zeros have to say to its bias."""

    def __init__(self, weight: torch.nn.Parameter, group: int, share: float) -> None:
        super().__init__()
        self.weight = (weight,)  # within a tuple it is not registered a second time
        self.group, self.share = group, share

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        return bias + self.share * _trapped(self.weight[0].float(), self.group).to(bias.dtype)
