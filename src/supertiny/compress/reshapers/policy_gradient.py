"""Learns which channels and heads to keep from losses alone, without a backward pass.

Paper: Gao et al., Bypass Back-propagation, 2024, arXiv:2406.10576.
Use when: structured pruning must be guided by the task's loss and there is no memory for gradients.
Differs from the paper: the gradient is the natural one of the Bernoulli policy, (mask - chance), which is bounded and
exact, where the authors' code divides by the root of the variance; the baseline of a mask is the mean loss of the
other masks on the same batch, not a moving mean over batches; advantages are scaled to a mean size of one; each block
keeps the same number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from supertiny.compress.reshapers._cutting import Kind, cut, kept_counts
from supertiny.compress.reshapers._importance import importance
from supertiny.compress.reshapers._task_loss import Advance, answer_loss, drawn, gated, unheard, with_answers
from supertiny.training.lessons import Batch

Chances = dict[Kind, torch.Tensor]
_LEAST_CHANCE = 0.01  # no unit is ever out of the game


@dataclass(frozen=True)
class PolicyGradient:
    """A chance to stay for every unit; masks drawn from them are compared by loss, and the chances follow."""

    channels: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of each block's FFN channels that goes."""
    heads: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each block's key-value heads that goes, rounded to whole ones; the query heads that read one go too."""
    steps: Annotated[int, Field(ge=0)] = 200
    """Batches that are looked at."""
    masks: Annotated[int, Field(ge=2)] = 4
    """Masks that are compared on each."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """How far a chance moves in a step; a cosine brings it down to zero."""
    start: Literal["activation", "even"] = "activation"
    """Chances before the first step: from the importance of activations, or all alike."""
    multiple: Annotated[int, Field(ge=1)] = 32
    """Channels that stay are a multiple of it: llama.cpp's small types store blocks of 32."""
    seed: int = 0
    """Of the masks and of the order of batches."""

    needs = ("calibration",)
    reports = True

    def reshape(self, model: Any, calibration: Sequence[Batch], advance: Advance = unheard) -> Any:
        """The model with the likeliest units. Raises UserError where a share cannot be had."""
        counts, _ = kept_counts(model, "policy_gradient", self.channels, self.heads, self.multiple)
        if counts:
            batches = with_answers(calibration, "policy_gradient", model)
            cut(model, self._learned(model, batches, counts, advance), counts)
        return model

    @torch.inference_mode()
    def _learned(
        self, model: Any, batches: Sequence[Batch], counts: Mapping[Kind, int], advance: Advance = unheard
    ) -> Chances:
        generator = torch.Generator().manual_seed(self.seed)
        chances: Chances = {}
        for kind, count in counts.items():
            scores = importance(model, batches, kind, "activation")
            # Logs, as scores spread over decades; standardised, so that the sigmoid tells the middle ones apart too.
            logs = scores.clamp_min(1e-30).log()
            spread = (logs - logs.mean(1, keepdim=True)) / logs.std(1, keepdim=True).clamp_min(1e-6)
            chances[kind] = _projected(spread.sigmoid() if self.start == "activation" else spread * 0 + 0.5, count)
        size = 0.0
        for step, batch in enumerate(drawn(batches, self.steps, self.seed, advance)):
            masks = [
                {k: torch.bernoulli(c, generator=generator) for k, c in chances.items()} for _ in range(self.masks)
            ]
            losses = torch.tensor([_loss_with(model, batch, mask) for mask in masks], dtype=torch.float64)
            advantages = (losses - losses.mean()) * self.masks / (self.masks - 1)
            now = float(advantages.abs().mean())
            size = now if step == 0 else 0.9 * size + 0.1 * now
            rate = self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps)) / max(size, 1e-12)
            for kind, count in counts.items():
                moves = sum(a * (m[kind] - chances[kind]) for a, m in zip(advantages, masks, strict=True))
                chances[kind] = _projected(chances[kind] - rate * moves / self.masks, count)
        return chances


def _loss_with(model: Any, batch: Batch, mask: Mapping[Kind, torch.Tensor]) -> float:
    with gated(model, mask):
        return float(answer_loss(model, batch))


def _projected(chances: torch.Tensor, count: int) -> torch.Tensor:
    """The nearest chances (blocks, units) of which each block's sum is `count`: all shifted alike, then clipped."""
    least = min(_LEAST_CHANCE, count / chances.shape[1], 1 - count / chances.shape[1])
    low, high = chances.amin(1, keepdim=True) - 1, chances.amax(1, keepdim=True)
    for _ in range(50):
        shift = (low + high) / 2
        above = (chances - shift).clamp(least, 1 - least).sum(1, keepdim=True) > count
        low, high = torch.where(above, shift, low), torch.where(above, high, shift)
    return (chances - (low + high) / 2).clamp(least, 1 - least)
