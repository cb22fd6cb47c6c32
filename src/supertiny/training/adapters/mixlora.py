"""Low-rank experts on each feed-forward layer, of which a router chooses some for every token.

Paper: Li et al., MixLoRA, 2024, arXiv:2404.15159.
Use when: one student learns tasks that get into each other's way; it cannot become a stock artifact.
Differs from the paper: the loss that keeps experts equally busy counts padding too, and comes in on the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.training.adapters._beside import LowRank, linear_layers, put
from supertiny.training.adapters._experts import ExpertLayer, ExpertPlan
from supertiny.training.adapters._peft import without_stock_model

_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


@dataclass(frozen=True)
class Mixlora:
    """Experts share the frozen layer; attention gets plain LoRA. Every change is zero at the start."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of each expert and of the change of attention."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Changes are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an attention layer's input that is dropped on its way into the adapter."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers outside the feed-forward part that get plain LoRA; none is all but the head."""
    experts: Annotated[int, Field(ge=2)] = 4
    """Experts of each layer."""
    chosen: Annotated[int, Field(ge=1)] = 2
    """Experts that a token goes through, by the router's odds."""
    balance: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the loss that keeps the experts equally busy."""

    needs = ("own_runtime",)

    def wrap(self, model: Any, seed: int) -> Any:
        """Raises UserError for a student without gated feed-forward layers, or more experts chosen than there are."""
        if self.chosen > self.experts:
            raise UserError(f"{self.chosen} of {self.experts} experts cannot be chosen", "lower `chosen`")
        gated = {path: part for path, part in model.named_modules() if all(hasattr(part, name) for name in _PARTS)}
        if not gated:
            raise UserError("the student has no feed-forward layers with gate_proj, up_proj and down_proj")
        within = tuple(f"{path}." for path in gated)
        plain = [item for item in linear_layers(model, self.targets).items() if not item[0].startswith(within)]
        generator = torch.Generator().manual_seed(seed)
        model.requires_grad_(False)
        for path, layer in plain:
            put(model, path, LowRank(layer, layer.weight, self.rank, self.alpha, self.dropout, generator))
        plan = ExpertPlan(self.experts, self.chosen, self.rank, self.alpha / self.rank, self.balance)
        for path, part in gated.items():
            put(model, path, ExpertLayer(part, plan, generator))
        return model

    def merge(self, model: Any) -> Any:
        """Raises UserError: which weights work is another choice for each token."""
        without_stock_model("mixlora", "its experts are chosen token by token")
