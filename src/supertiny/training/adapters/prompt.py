"""Vectors that stand before every prompt are learned; the model stays as it is.

Paper: Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, 2021, arXiv:2104.08691.
Use when: many tasks share one model in memory; it cannot become a stock artifact.
Differs from the paper: the vectors start as those of random tokens of the whole vocabulary, not of its most common.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from supertiny.training.adapters._peft import without_stock_model, wrapped_by_peft


@dataclass(frozen=True)
class Prompt:
    """Virtual tokens at the embedding; PEFT's own class. A fresh one changes what the model says."""

    tokens: Annotated[int, Field(ge=1)] = 20
    """Number of virtual tokens."""

    needs = ("own_runtime",)

    def wrap(self, model: Any, seed: int) -> Any:
        from peft import PromptTuningConfig

        config = PromptTuningConfig(
            num_virtual_tokens=self.tokens, prompt_tuning_init="SAMPLE_VOCAB", task_type="CAUSAL_LM"
        )
        return wrapped_by_peft(model, config, seed)

    def merge(self, model: Any) -> Any:
        """Raises UserError: what is learned stands beside the model's weights, not in them."""
        without_stock_model("a prompt of virtual tokens", "it stands before the request")
