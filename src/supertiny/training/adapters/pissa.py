"""LoRA that starts as the largest singular values of each weight and leaves the rest frozen.

Paper: Meng et al., PiSSA, 2024, arXiv:2404.02948.
Use when: LoRA learns too slowly: what is learned is the weight's largest part from the first step on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from supertiny.training.adapters._peft import low_rank, merged_by_peft


@dataclass(frozen=True)
class Pissa:
    """W = rest + B A, both cut from one singular value decomposition; PEFT's own class."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the learned change."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The change is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the layer's input that is dropped on its way into the adapter."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that are adapted; none is all but the head."""

    def wrap(self, model: Any, seed: int) -> Any:
        return low_rank(self, model, seed, init_lora_weights="pissa")

    def merge(self, model: Any) -> Any:
        return merged_by_peft(model)
