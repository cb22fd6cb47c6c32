"""Reinforcement and distillation in one loss: the teacher's answers hold while the student's own are tried out.

Paper: Xu et al., KDRL: unified knowledge distillation and reinforcement learning, 2025, arXiv:2506.02208.
Use when: reinforcement alone forgets, or starts with few right answers; the weight moves from teacher to reward.
Differs from the paper: distillation is on the teacher's answers (cross-entropy, or a divergence where there is a live
teacher), not on the student's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.core.methods import build
from supertiny.training.align import on_teacher_support
from supertiny.training.learners._policy import PolicyLoss, Rules, Trials
from supertiny.training.lessons import Batch, Lesson, Trial
from supertiny.training.loop import Plan, Step, descend, steps_of
from supertiny.training.practice import Practice
from supertiny.training.pupil import Pupil


@dataclass(frozen=True)
class Hybrid:
    """Loss = w * policy + (1 - w) * distillation, with w moving from the first step to the last."""

    reward: Any = field(default="similarity", metadata={"family": "rewards"})
    """A method of the family rewards."""
    divergence: Any = field(default="forward_kl", metadata={"family": "divergences"})
    """Where there is a live teacher; otherwise its answers are learned by cross-entropy."""
    policy_share_first: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Weight of the policy's loss at the first step."""
    policy_share_last: Annotated[float, Field(ge=0, le=1)] = 0.8
    """And at the last."""
    learning_rate: float = 2e-5
    """Peak of the cosine schedule."""
    passes: int = 1
    """Times that each lesson is seen."""
    rows: int = 16
    """Lessons of a step."""
    asked: Annotated[int, Field(ge=1)] = 8
    """How many of them are also answered by the student itself."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Answers to each of these."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the sampling."""
    redraws: Annotated[int, Field(ge=0)] = 1
    """Times that requests without signal are replaced in a step."""
    least_signal: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of requests whose answers must differ in reward before training starts."""
    top_k: int = 64
    """Number of a live teacher's most probable tokens that are told apart."""
    weight_decay: float = 0.0
    """AdamW's decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""

    needs = ("practice",)

    def fit(
        self,
        pupil: Pupil,
        lessons: Sequence[Lesson],
        seed: int,
        checkpoint: Path | None = None,
        every: int = 0,
        *,
        practice: Practice,
        teacher: Pupil | None = None,
    ) -> Iterator[Step]:
        """Yields a record per step, with mean reward, share of requests with signal, and the policy's weight."""
        rules = Rules(self.reward, self.samples, self.temperature, self.redraws, 0.0, self.least_signal)
        trials = Trials(pupil, practice, rules, lessons, seed)
        if checkpoint is None or not checkpoint.exists():
            trials.check_signal()
        policy = PolicyLoss(0.2, 0.28, 0.0, True, self.temperature)
        divergence = build("divergences", self.divergence)
        total = steps_of(len(lessons), self.rows, self.passes)
        share = 0.0

        def draw(group: Sequence[Lesson], step: int) -> list[Lesson]:
            nonlocal share
            along = step / max(1, total - 1)
            share = (1 - along) * self.policy_share_first + along * self.policy_share_last
            return [*group, *trials.drawn(group[: self.asked], step)]

        def loss_of(batch: Batch) -> torch.Tensor:
            logits = pupil.logits_at(batch.ids, batch.mask, batch.wanted)
            own = torch.tensor([isinstance(row, Trial) for row in batch.rows], device=logits.device)
            mine = own[batch.row_of_position]
            losses = torch.zeros_like(logits[:, 0])
            if mine.any():
                tried = Batch(batch.ids, batch.mask, batch.wanted & own[:, None], batch.targets[mine], batch.rows)
                losses[mine] = share * policy(logits[mine], tried)
            if not mine.all():
                known = (1 - share) * _known(logits[~mine], batch, ~mine)
                losses[~mine] = known
            return _balanced(losses, mine)

        def _known(logits: torch.Tensor, batch: Batch, places: torch.Tensor) -> torch.Tensor:
            if teacher is None:
                return torch.nn.functional.cross_entropy(logits, batch.targets[places], reduction="none")
            with torch.no_grad():
                wise = teacher.logits_at(batch.ids, batch.mask, batch.wanted)[places]
            apart: torch.Tensor = divergence(*on_teacher_support(wise, logits, self.top_k))
            return apart

        told = lambda: {**trials.told, "policy_share": share}  # noqa: E731
        return descend(pupil, lessons, Plan.of(self, seed), loss_of, checkpoint, every, draw, told)


def _balanced(losses: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """The sum of both parts' means, so that eight answers a request do not outweigh the teacher's one."""
    parts = [losses[places].mean() for places in (mine, ~mine) if places.any()]
    return torch.stack(parts).sum()
