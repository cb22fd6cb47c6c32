"""Cuts the least important FFN channels, heads and hidden dimensions, as many in every block.

Paper: An et al., Fluctuation-based Adaptive Structured Pruning, 2024, arXiv:2312.11983.
Use when: bytes and time must fall and every block is needed. Recovery afterwards is needed.
Differs from the paper: the same number goes in all blocks, and nothing is added to biases, so that the configuration
stays stock; the mean square of Sun et al., Wanda, 2023, arXiv:2306.11695, summed over a unit, is the metric unless
`by` says otherwise; `gradient` is the coupled |weight * gradient| of Ma et al., LLM-Pruner, 2023, arXiv:2305.11627, and
of FedSpine, which takes it from adapters where here all weights have gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from supertiny.compress.reshapers._cutting import cut, keep_width, kept_counts, strongest
from supertiny.compress.reshapers._importance import Importance, importance
from supertiny.compress.reshapers._task_loss import with_answers
from supertiny.training.lessons import Batch


@dataclass(frozen=True)
class Narrow:
    """First heads and channels, then the hidden width, each by importance within what is left."""

    channels: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of each block's FFN channels that goes."""
    heads: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each block's key-value heads that goes, rounded to whole ones; the query heads that read one go too."""
    width: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the hidden state's dimensions that goes; what stays is a multiple of the number of heads too."""
    by: Importance = "activation"
    """What importance is: `activation`, `fluctuation`, `gradient`, `magnitude`, or `random` as the floor."""
    multiple: Annotated[int, Field(ge=1)] = 32
    """Channels and dimensions that stay are a multiple of it: llama.cpp's small types store blocks of 32."""
    seed: int = 0
    """Where `random` starts."""

    needs = ("calibration",)

    def reshape(self, model: Any, calibration: Sequence[Batch]) -> Any:
        """The narrower model. Raises UserError where a share cannot be had or the model is built strangely."""
        counts, width = kept_counts(model, "narrow", self.channels, self.heads, self.multiple, self.width)
        looks = self.by in ("activation", "fluctuation", "gradient")
        batches = with_answers(calibration, "narrow", model) if looks else []
        if counts:
            cut(model, {kind: importance(model, batches, kind, self.by, self.seed) for kind in counts}, counts)
        if width < model.config.hidden_size:
            keep_width(model, strongest(importance(model, batches, "width", self.by, self.seed)[0], width))
        return model
