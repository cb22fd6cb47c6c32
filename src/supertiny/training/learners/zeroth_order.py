"""Learns from losses alone, in the memory of inference: weights are tried a little to both sides of random directions.

Paper: Zhang et al., Revisiting zeroth-order optimization (ZO-Bench), 2024, arXiv:2402.11592; Malladi et al., MeZO,
2023, arXiv:2305.17333; Wang et al., DistZO2, 2025, arXiv:2507.03211.
Use when: gradients do not fit in memory, or an adapter of few weights is learned in very many cheap steps.
Differs from the paper: no weight is moved and taken back, so that none drifts; rounding of a step in bfloat16 is
random; Adam's moments are drawn anew from the last slopes; no forward-mode or hybrid gradients, no offloading and one
device, though both sides of a direction need nothing but its seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from supertiny.training.learners._stepping import stepped
from supertiny.training.learners._walking import Elsewhere, Mask, Slopes, Walk, Weights
from supertiny.training.lessons import Lesson, collate
from supertiny.training.loop import Plan, Step, _is_out_of_memory
from supertiny.training.pupil import Pupil


@dataclass(frozen=True)
class ZerothOrder:
    """Step = -rate * mean over directions of slope * direction; slope = (loss ahead - loss behind) / (2 epsilon)."""

    rule: Literal["plain", "sign", "adam", "conservative"] = "plain"
    """What is done with the slopes; `conservative` keeps the best of a step, its opposite, and none."""
    learning_rate: float = 1e-6
    """Peak of the cosine schedule; an adapter bears 1e-4."""
    passes: int = 4
    """Times that each lesson is seen."""
    rows: int = 32
    """Rows of a batch."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-3
    """How far to both sides the weights are tried."""
    directions: Annotated[int, Field(ge=1)] = 1
    """Directions that a step tries, two forward passes each."""
    blocks: Annotated[int, Field(ge=1)] = 1
    """Groups of neighbouring weights that directions move in turn."""
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the weights that are not moved."""
    mask: Mask = "random"
    """Which weights are moved where not all are: the same random ones, or the small or large ones of each matrix."""
    memory: Annotated[int, Field(ge=1)] = 8
    """Steps whose slopes `adam` remembers; each costs as much noise as a forward pass does."""
    clip: float = 1.0
    """Largest norm of the gradient, as the slopes estimate it."""

    def fit(
        self,
        pupil: Pupil,
        lessons: Sequence[Lesson],
        seed: int,
        checkpoint: Path | None = None,
        every: int = 0,
    ) -> Iterator[Step]:
        """Yields a record per step; its loss is the mean over both sides, its norm the root mean square slope."""
        mover = _Walker(self, pupil, seed)
        return stepped(pupil, lessons, Plan.of(self, seed), mover, checkpoint, every)


class _Walker:
    """The weights, and the slopes of the last steps."""

    def __init__(self, settings: ZerothOrder, pupil: Pupil, seed: int) -> None:
        s = self.settings = settings
        self.pupil = pupil
        self.weights = Weights(pupil.model, s.blocks, s.epsilon, s.sparsity, s.mask, seed)
        self.slopes = Slopes(s.memory * s.blocks)
        self.at_once = 0  # rows; 0 is all
        self.looked = False

    @torch.no_grad()
    def move(self, rows: Sequence[Lesson], rate: float, step: int) -> tuple[float, float]:
        self.pupil.model.eval()  # both sides must see the same function
        if not self.looked:
            self.weights.look(lambda: self._total(rows[:1]))
            self.looked = True
        s, losses, walks = self.settings, [], []
        for number in range(s.directions):
            walk = Walk(step, number, (step * s.directions + number) % s.blocks)
            ahead, behind = (self._loss(rows, self.weights.beside(walk, side)) for side in (1.0, -1.0))
            walks.append(replace(walk, slope=(ahead - behind) / (2 * s.epsilon)))
            losses += [ahead, behind]
        loss = sum(losses) / len(losses)
        norm = math.sqrt(sum(walk.slope**2 for walk in walks) / len(walks))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return loss, norm
        chosen = self._ruled([replace(w, slope=w.slope * min(1.0, s.clip / max(norm, 1e-12))) for w in walks], step)
        if s.rule == "conservative":
            loss, rate = self._best(rows, chosen, rate, step)
        if rate:
            self.weights.go(chosen, rate, step)
        return loss, norm

    def _best(self, rows: Sequence[Lesson], walks: Sequence[Walk], rate: float, step: int) -> tuple[float, float]:
        """The loss where the weights stand, and the rate among 0, `rate` and `-rate` that leads to the least."""
        here = self._loss(rows, lambda index: None)
        found = {side * rate: self._loss(rows, self.weights.ahead(walks, side * rate, step)) for side in (1, -1)}
        best = min(found, key=lambda side: found[side])
        return here, best if found[best] < here else 0.0

    def _ruled(self, walks: Sequence[Walk], step: int) -> list[Walk]:
        """The walks with their weights in the step, as the rule has it; those of a group sum to one."""
        if self.settings.rule == "adam":
            return self.slopes.after(walks, step)
        if self.settings.rule == "sign":
            walks = [replace(walk, slope=math.copysign(1.0, walk.slope) if walk.slope else 0.0) for walk in walks]
        return [replace(walk, first=1 / sum(w.group == walk.group for w in walks)) for walk in walks]

    def _loss(self, rows: Sequence[Lesson], elsewhere: Elsewhere) -> float:
        """Mean over the answer tokens, in as many parts as memory asks for."""
        while True:
            at_once = self.at_once or len(rows)
            try:
                with self.weights.at(elsewhere):
                    parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
                    return sum(self._total(part) for part in parts) / sum(len(r.ids) - r.answer_start for r in rows)
            except RuntimeError as error:
                if not _is_out_of_memory(error) or at_once == 1:
                    raise
                self.at_once = at_once // 2
                self.pupil.note(f"  {len(rows)} rows do not fit in memory: {self.at_once} at a time")

    def _total(self, rows: Sequence[Lesson]) -> float:
        batch = collate(rows, self.pupil.pad_id).to(self.pupil.device)
        # Not the pupil's own answer_loss, which reads the head's weight without calling the head.
        logits = self.pupil.logits_at(batch.ids, batch.mask, batch.wanted)
        return float(torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum"))

    def tensors(self) -> dict[str, torch.Tensor]:
        weights = {f"weight.{index}": p.data for index, p in enumerate(self.weights.parameters)}
        return {**weights, "slopes": self.slopes.to_tensor()}

    def take(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        for index, parameter in enumerate(self.weights.parameters):
            parameter.data.copy_(tensors[f"weight.{index}"])
        self.slopes.take(tensors["slopes"])
