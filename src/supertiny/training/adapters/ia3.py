"""One learned factor per number that flows: on keys, values and what enters the last feed-forward matrix.

Paper: Liu et al., T-Few, (IA)^3, 2022, arXiv:2205.05638.
Use when: there are a few dozen rows, on which anything larger would learn by heart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from supertiny.training.adapters._peft import merged_by_peft, targets_of, wrapped_by_peft


@dataclass(frozen=True)
class Ia3:
    """Factors of 1 at the start; PEFT's own class."""

    outputs: tuple[str, ...] = ("k_proj", "v_proj")
    """Names of the linear layers whose outputs are scaled."""
    inputs: tuple[str, ...] = ("down_proj",)
    """Names of the linear layers whose inputs are scaled."""

    def wrap(self, model: Any, seed: int) -> Any:
        from peft import IA3Config

        config = IA3Config(
            target_modules=targets_of(model, (*self.outputs, *self.inputs)),
            feedforward_modules=list(self.inputs),
            task_type="CAUSAL_LM",
        )
        return wrapped_by_peft(model, config, seed)

    def merge(self, model: Any) -> Any:
        return merged_by_peft(model)
