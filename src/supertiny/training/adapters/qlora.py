"""LoRA beside weights that are held in 4 bits and restored for each use, on any processor.

Paper: Dettmers et al., QLoRA, 2023, arXiv:2305.14314.
Use when: not even the frozen weights fit in memory; each use costs the time of restoring them.
Differs from the paper: no paged optimiser; the scales' scales are 8-bit integers about their mean, not 8-bit floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.training.adapters._beside import LowRank, merged_beside, put_beside
from supertiny.training.adapters._nf4 import QuantizedLinear


@dataclass(frozen=True)
class Qlora:
    """NF4(W) + alpha / rank * B A, with B zero at the start; a fresh one says what the 4-bit model says.

    Merging gives float weights: those of the 4-bit model, changed.
    """

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the learned change."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The change is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the layer's input that is dropped on its way into the adapter."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that are held in 4 bits and adapted; none is all but the head."""
    block: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """Weights that share a scale."""
    double: bool = True
    """Whether the scales are quantized too: 4.13 bits a weight instead of 4.5."""

    def wrap(self, model: Any, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)

        def beside(layer: torch.nn.Linear) -> torch.nn.Module:
            frozen = QuantizedLinear(layer, self.block, self.double)
            return LowRank(frozen, layer.weight, self.rank, self.alpha, self.dropout, generator)

        return put_beside(model, self.targets, beside)

    def merge(self, model: Any) -> Any:
        for module in model.modules():
            if isinstance(module, LowRank) and isinstance(module.frozen, QuantizedLinear):
                module.frozen = module.frozen.restored(module.down.dtype)
        return merged_beside(model)
