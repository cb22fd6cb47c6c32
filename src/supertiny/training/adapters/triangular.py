"""LoRA with a core between its two sides, whose ranks grow in the layers where it moves most.

Paper: TriAdaptLoRA, 2025, arXiv:2501.08008.
Use when: the budget of ranks is tight and layers differ in how much they must change.
Differs from the paper: both sides start random and only the core is zero, for with two zero factors no gradient would
ever flow; growth closes in on the budget by a share of what is left; no layer gets more than twice the mean rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.training.adapters._beside import merged_beside, put_beside
from supertiny.training.adapters._growing import Grown, Growth


@dataclass(frozen=True)
class Triangular:
    """alpha / rank * B (C_lower + C_upper) A; every layer starts with half the rank."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Mean rank over the layers, when all has grown."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The change is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the layer's input that is dropped on its way into the adapter."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that are adapted; none is all but the head."""
    every: Annotated[int, Field(ge=1)] = 20
    """Forward passes of training between two growths."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the ranks that are left to give out, at each growth."""

    def wrap(self, model: Any, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        layers: list[Grown] = []

        def grown(layer: torch.nn.Linear) -> torch.nn.Module:
            layers.append(Grown(layer, self.rank, self.alpha, self.dropout, generator))
            return layers[-1]

        put_beside(model, self.targets, grown)
        model.growth = Growth(layers, self.rank, self.every, self.share).to(model.device)
        model.base_model.register_forward_pre_hook(model.growth)
        return model

    def merge(self, model: Any) -> Any:
        hooks = model.base_model._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, Growth)]:
            del hooks[key]
        del model.growth
        return merged_beside(model)
