"""LoRA that starts as the largest singular values of each weight and leaves the rest frozen.

Paper: Meng et al., PiSSA, 2024, arXiv:2404.02948.
Use when: LoRA learns too slowly: what is learned is the weight's largest part from the first step on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from supertiny.training.adapters._peft import merged_by_peft, targets_of, wrapped_by_peft


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
        from peft import LoraConfig

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type] # PEFT divides by it, whatever its kind
            lora_dropout=self.dropout,
            target_modules=targets_of(model, self.targets),
            task_type="CAUSAL_LM",
            init_lora_weights="pissa",
        )
        return wrapped_by_peft(model, config, seed)

    def merge(self, model: Any) -> Any:
        return merged_by_peft(model)
