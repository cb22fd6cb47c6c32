"""Gradient descent whose weights are drawn back towards where they stood some steps ago."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from supertiny.training.lessons import Batch, Lesson
from supertiny.training.loop import Plan, _Worker
from supertiny.training.optimiser import _MOMENTS, Optimiser, counts_of
from supertiny.training.pupil import Pupil


class Aligned:
    """Every `steps` steps: slow <- slow + share * (weights - slow), and the weights go there; Adam's moments stay.

    Reptile: batches whose gradients point alike are followed further than those that disagree. 0 steps is never.
    """

    def __init__(
        self, pupil: Pupil, plan: Plan, loss_of: Callable[[Batch], torch.Tensor], steps: int, share: float
    ) -> None:
        self.model, self.steps, self.share = pupil.model, steps, share
        self.optimiser = Optimiser(
            list(pupil.model.parameters()),
            plan.learning_rate,
            plan.weight_decay,
            plan.clip,
            plan.seed,
            counts_of(pupil.model),
        )
        self.worker = _Worker(pupil, self.optimiser, loss_of, plan.seed)
        self.slow = [master.clone() for master in self.optimiser.masters] if steps else []

    def move(self, rows: Sequence[Lesson], rate: float, step: int) -> tuple[float, float]:
        self.model.train()
        loss = self.worker.backward(rows, step)
        norm = self.optimiser.step(rate)
        if self.steps and (step + 1) % self.steps == 0:
            with torch.no_grad():
                torch._foreach_lerp_(self.slow, self.optimiser.masters, self.share)
                torch._foreach_copy_(self.optimiser.masters, self.slow)
                torch._foreach_copy_(self.optimiser.live, self.slow)
        return loss, norm

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {f"master.{i}": master for i, master in enumerate(self.optimiser.masters)}
        found |= {f"slow.{i}": slow for i, slow in enumerate(self.slow)}
        for i, master in enumerate(self.optimiser.masters):
            found |= {f"{name}.{i}": value for name, value in self.optimiser.adam.state.get(master, {}).items()}
        return found | {f"count.{name}": tensor for name, tensor in self.optimiser.counts.items()}

    def take(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        for i, (master, live) in enumerate(zip(self.optimiser.masters, self.optimiser.live, strict=True)):
            master.copy_(tensors[f"master.{i}"])
            live.data.copy_(master)
            moments = {name: tensors[f"{name}.{i}"] for name in _MOMENTS if f"{name}.{i}" in tensors}
            if moments:
                # Where the master lives: a step on a GPU needs them there.
                self.optimiser.adam.state[master] = {name: value.to(master.device) for name, value in moments.items()}
        for i, slow in enumerate(self.slow):
            slow.copy_(tensors[f"slow.{i}"])
        for name, count in self.optimiser.counts.items():
            count.copy_(tensors[f"count.{name}"])
