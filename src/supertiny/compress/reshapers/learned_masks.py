"""Learns gates on channels and heads together with a small adapter, until the asked share of gates is shut.

Paper: Guo et al., Compresso, 2023, arXiv:2310.05015; gates: Louizos et al., 2018, arXiv:1712.01312.
Use when: quality at a given size counts more than the minutes of a short training.
Differs from the paper: the hidden width has no gates; every block has a budget and multipliers of its own, so that the
configuration stays stock; no text in front tells the model that it is being pruned, as prompts must be in serving what
they were in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.compress.reshapers._cutting import Kind, cut, head_counts, kept_counts
from supertiny.compress.reshapers._task_loss import Advance, answer_loss, drawn, gated, unheard, with_answers
from supertiny.training.lessons import Batch

Gates = dict[Kind, torch.Tensor]
_HEAT, _LOW, _HIGH = 2 / 3, -0.1, 1.1  # of the hard concrete distribution
_SHARPEN = 0.8  # the authors' factor for gates that are no longer drawn
_OPEN = 3.0  # where gates start: nearly all open


@dataclass(frozen=True)
class LearnedMasks:
    """Loss + a * gap + b * gap^2, gap = expected share of open gates - asked share; a and b climb as it stays."""

    channels: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of each block's FFN channels that goes."""
    heads: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each block's key-value heads that goes, rounded to whole ones; the query heads that read one go too."""
    steps: Annotated[int, Field(ge=1)] = 200
    """Batches that are learned from; the asked share grows over the first half of them."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Of the adapter."""
    gate_rate: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of gates and multipliers."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Of the adapter on queries and values, which is merged in the end; all other weights are frozen."""
    multiple: Annotated[int, Field(ge=1)] = 32
    """Channels that stay are a multiple of it: llama.cpp's small types store blocks of 32."""
    seed: int = 0
    """Of the adapter, of the gates that are drawn and of the order of batches."""

    needs = ("calibration",)
    reports = True

    def reshape(self, model: Any, calibration: Sequence[Batch], advance: Advance = unheard) -> Any:
        """The model with the gates that stayed open merged into it. Raises UserError where a share cannot be had."""
        counts, _ = kept_counts(model, "learned_masks", self.channels, self.heads, self.multiple)
        if not counts:
            return model
        gates = self._learned(model, with_answers(calibration, "learned_masks", model), counts, advance)
        for kind, logits in gates.items():
            for block, row in zip(model.base_model.layers, _stretched(logits / _HEAT * _SHARPEN), strict=True):
                part = block.mlp.down_proj if kind == "channels" else block.self_attn.o_proj
                part.weight.data.mul_(row.repeat_interleave(part.in_features // len(row)).to(part.weight))
        cut(model, gates, counts)
        return model

    def _learned(
        self, model: Any, batches: Sequence[Batch], counts: Mapping[Kind, int], advance: Advance = unheard
    ) -> Gates:
        """The gates' logits (blocks, units); the adapter is merged into the model."""
        generator = torch.Generator().manual_seed(self.seed)
        units = {"channels": model.config.intermediate_size, "heads": head_counts(model)[1]}
        shape = {kind: (len(model.base_model.layers), units[kind]) for kind in counts}
        gates = {kind: torch.full(size, _OPEN, device=model.device).requires_grad_() for kind, size in shape.items()}
        prices = [torch.zeros(2, size[0], device=model.device).requires_grad_() for size in shape.values()]
        with _adapted(model, self.rank, generator) as adapter:
            down = torch.optim.Adam(
                [{"params": list(gates.values()), "lr": self.gate_rate}, {"params": adapter, "lr": self.learning_rate}]
            )
            up = torch.optim.Adam(prices, lr=self.gate_rate, maximize=True)
            for step, batch in enumerate(drawn(batches, self.steps, self.seed, advance)):
                along = min(1.0, 2 * (step + 1) / self.steps)
                with gated(model, {kind: _drawn_gates(logits, generator) for kind, logits in gates.items()}):
                    loss = answer_loss(model, batch)
                for (kind, logits), (first, second) in zip(gates.items(), prices, strict=True):
                    gap = _chances(logits).mean(1) - (1 - along * (1 - counts[kind] / units[kind]))
                    loss = loss + (first * gap + second * gap.square()).sum()
                down.zero_grad()
                up.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                down.step()
                up.step()
        return {kind: logits.detach() for kind, logits in gates.items()}


def _chances(logits: torch.Tensor) -> torch.Tensor:
    """Chance of each gate to be open at all."""
    return torch.sigmoid(logits - _HEAT * math.log(-_LOW / _HIGH))


def _stretched(logits: torch.Tensor) -> torch.Tensor:
    return (torch.sigmoid(logits) * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _drawn_gates(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.rand(logits.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(logits.device)
    return _stretched((noise.logit() + logits) / _HEAT)


@contextmanager
def _adapted(model: Any, rank: int, generator: torch.Generator) -> Iterator[list[torch.Tensor]]:
    """Within it queries and values have a low-rank addition (its factors are given) and all else is frozen."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    added = []
    for part in (p for b in model.base_model.layers for p in (b.self_attn.q_proj, b.self_attn.v_proj)):
        first = torch.randn(rank, part.in_features, generator=generator) / math.sqrt(part.in_features)
        factors = (first.to(model.device).requires_grad_(), torch.zeros(part.out_features, rank, device=model.device))
        added.append((part, factors[0], factors[1].requires_grad_()))
    handles = [part.register_forward_hook(_adding(first, second)) for part, first, second in added]
    try:
        yield [factor for _, *pair in added for factor in pair]
        for part, first, second in added:
            part.weight.data.add_((2 * second.detach() @ first.detach()).to(part.weight))
    finally:
        for handle in handles:
            handle.remove()
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def _adding(first: torch.Tensor, second: torch.Tensor) -> Any:
    def hook(module: Any, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> torch.Tensor:
        return result + (2 * given[0].float() @ first.T @ second.T).to(result)

    return hook
