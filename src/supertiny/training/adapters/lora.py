"""A product of two thin matrices is learned beside each linear layer.

Paper: Hu et al., LoRA, 2021, arXiv:2106.09685.
Use when: first choice where training every weight does not fit, or many tasks share one student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from supertiny.training.adapters._peft import low_rank, merged_by_peft


@dataclass(frozen=True)
class Lora:
    """W + alpha / rank * B A, with B zero at the start; PEFT's own class."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the learned change."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The change is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the layer's input that is dropped on its way into the adapter."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that are adapted; none is all but the head."""

    def wrap(self, model: Any, seed: int) -> Any:
        return low_rank(self, model, seed)

    def merge(self, model: Any) -> Any:
        return merged_by_peft(model)
