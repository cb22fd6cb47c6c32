"""LoRA on the direction of each output's weights, with a length that is learned apart.

Paper: Liu et al., DoRA, 2024, arXiv:2402.09353.
Use when: LoRA of a low rank stays behind full training and a step may take longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from supertiny.training.adapters._peft import low_rank, merged_by_peft


@dataclass(frozen=True)
class Dora:
    """m * (W + alpha / rank * B A) / norm of each row, m starting as the norm of W's rows; PEFT's own class."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the learned change."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The change is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the layer's input that is dropped on its way into the adapter."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that are adapted; none is all but the head."""

    def wrap(self, model: Any, seed: int) -> Any:
        return low_rank(self, model, seed, use_dora=True)

    def merge(self, model: Any) -> Any:
        return merged_by_peft(model)
