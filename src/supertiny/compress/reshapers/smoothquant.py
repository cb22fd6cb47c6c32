"""Moves the outliers of activations into the weights, channel by channel; the model computes what it did.

Paper: Xiao et al., SmoothQuant, 2022, arXiv:2211.10438.
Use when: activations are rounded too, as engines with 8-bit products do.
Differs from the paper: the outputs of values and of `up` are evened out as well, where nothing stands in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.compress.reshapers._folding import flows, seams_of
from supertiny.training.lessons import Batch


@dataclass(frozen=True)
class Smoothquant:
    """A channel's scale is (largest activation)^alpha / (largest weight)^(1 - alpha)."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the difficulty that goes from activations to weights."""
    inner: bool = True
    """Whether values and `up` are evened out too, beside what the norms give."""

    needs = ("calibration",)

    def reshape(self, model: Any, calibration: Sequence[Batch]) -> Any:
        """The same model with other scales, changed in place.

        Raises UserError for an architecture that it does not know, and where there are no calibration rows.
        """
        seams = [seam for seam in seams_of(model, "smoothquant") if self.inner or seam.before.weight.ndim == 1]
        seen = flows(model, calibration, [seam.after[0] for seam in seams], "smoothquant")
        for seam, flow in zip(seams, seen, strict=True):
            weights = torch.stack([layer.weight.detach().float().abs().amax(dim=0) for layer in seam.after])
            active, heavy = seam.gathered(flow.largest), seam.gathered(weights.amax(dim=0))
            scale = active.pow(self.alpha) / heavy.clamp(min=1e-5).pow(1 - self.alpha)
            # A channel that is silent on the calibration rows says nothing of its scale.
            scale = torch.where((active > 1e-5) & (heavy > 1e-5), scale, torch.ones_like(scale))
            seam.fold(scale.clamp(1e-4, 1e4))
        return model
