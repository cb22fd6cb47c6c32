"""Enlarges the weights whose inputs are large before they are rounded; the model computes what it did.

Paper: Lin et al., AWQ: Activation-aware Weight Quantization, 2023, arXiv:2306.00978.
Use when: weights will be rounded to few bits, as gguf's q4_0 and compressed_tensors do.
Differs from the paper: rounding is llama.cpp's, a scale without a minimum; heads that share values share their scales;
clipping is left to the quantizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.compress.reshapers._folding import Flow, Seam, flows, seams_of
from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch


@dataclass(frozen=True)
class Awq:
    """A channel's scale is (mean activation)^alpha; of several alpha the one of the least rounding error is taken."""

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    """Bits of a weight in the type that will be exported."""
    group: Annotated[int, Field(ge=1)] = 32
    """Weights of a row that share a scale there; it must divide the length of every row."""
    tries: Annotated[int, Field(ge=1)] = 20
    """How many alpha from 0 to 1 are tried; 0, which changes nothing, is always among them."""

    needs = ("calibration",)

    def reshape(self, model: Any, calibration: Sequence[Batch]) -> Any:
        """The same model with other scales, changed in place.

        Raises UserError for an architecture that it does not know, a group that does not divide a row, and where there
        are no calibration rows.
        """
        seams = seams_of(model, "awq")
        for seam in seams:
            if seam.after[0].in_features % self.group:
                width = seam.after[0].in_features
                raise UserError(f"awq: a group of {self.group} does not divide rows of {width}", _divisors(width))
        seen = flows(model, calibration, [seam.after[0] for seam in seams], "awq")
        for seam, flow in zip(seams, seen, strict=True):
            seam.fold(self._best(seam, flow))
        return model

    @torch.no_grad()
    def _best(self, seam: Seam, flow: Flow) -> torch.Tensor:
        """(outputs of `before`,) the scales under which rounding changes the layers' outputs least."""
        mean = seam.gathered(flow.mean).clamp(min=1e-8)
        best, least = torch.ones_like(mean), float("inf")
        for alpha in torch.linspace(0, 1, self.tries + 1)[: self.tries].tolist():
            scale = mean.pow(alpha).clamp(min=1e-4)
            scale = scale / (scale.max() * scale.min()).sqrt()
            spread = seam.spread(scale)
            error = 0.0
            for layer in seam.after:
                weight = layer.weight.float()
                rounded = _rounded(weight * spread, self.bits, self.group) / spread
                error += float((flow.sample @ (rounded - weight).T).square().sum())
            if error < least:
                best, least = scale, error
        return best


def _rounded(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """As llama.cpp rounds to q4_0: per group one scale, on which the weight of largest magnitude stands exactly."""
    half = 2 ** (bits - 1)
    blocks = weight.reshape(-1, group)
    scale = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True)) / -half
    inverse = torch.where(scale == 0, torch.zeros_like(scale), scale.reciprocal())
    rounded: torch.Tensor = (blocks * inverse + 0.5).floor().clamp(-half, half - 1) * scale
    return rounded.reshape(weight.shape)


def _divisors(width: int) -> str:
    fitting = [str(size) for size in (16, 32, 48, 64, 96, 128, 192, 256) if width % size == 0]
    return f"{', '.join(fitting) or 1} would" + (" divide it" if fitting else "")
