"""Keys and values that every layer attends to before the prompt are learned; the model stays as it is.

Paper: Li and Liang, Prefix-Tuning, 2021, arXiv:2101.00190.
Use when: a prompt of virtual tokens is too weak, and many tasks share one model in memory.
Differs from the paper: the keys and values are learned themselves, unless `width` puts a small network before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from supertiny.training.adapters._peft import without_stock_model, wrapped_by_peft


@dataclass(frozen=True)
class Prefix:
    """Virtual keys and values; PEFT's own class. A fresh one changes what the model says."""

    tokens: Annotated[int, Field(ge=1)] = 20
    """Number of virtual positions."""
    width: Annotated[int, Field(ge=0)] = 0
    """Width of the network that makes the keys and values; 0 is none."""

    needs = ("own_runtime",)

    def wrap(self, model: Any, seed: int) -> Any:
        from peft import PrefixTuningConfig

        config = PrefixTuningConfig(
            num_virtual_tokens=self.tokens,
            prefix_projection=bool(self.width),
            encoder_hidden_size=self.width or None,  # type: ignore[arg-type] # PEFT's own default
            task_type="CAUSAL_LM",
        )
        return wrapped_by_peft(model, config, seed)

    def merge(self, model: Any) -> Any:
        """Raises UserError: what is learned stands beside the model's weights, not in them."""
        without_stock_model("a prefix of keys and values", "it stands before the request")
