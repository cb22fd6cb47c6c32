"""LoRA whose scale falls with the square root of the rank, so that high ranks still learn.

Paper: Kalajdzievski, rank-stabilized LoRA, 2023, arXiv:2312.03732.
Use when: the rank is 32 or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from supertiny.training.adapters._peft import low_rank, merged_by_peft


@dataclass(frozen=True)
class Rslora:
    """W + alpha / sqrt(rank) * B A, with B zero at the start; PEFT's own class."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the learned change."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The change is scaled by alpha / sqrt(rank)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the layer's input that is dropped on its way into the adapter."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that are adapted; none is all but the head."""

    def wrap(self, model: Any, seed: int) -> Any:
        return low_rank(self, model, seed, use_rslora=True)

    def merge(self, model: Any) -> Any:
        return merged_by_peft(model)
