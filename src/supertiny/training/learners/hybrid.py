"""Reinforcement and distillation in one loss: the teacher's answers hold while the student's own are tried out.

Paper: Xu et al., KDRL: unified knowledge distillation and reinforcement learning, 2025, arXiv:2506.02208.
Use when: reinforcement alone forgets, or starts with few right answers; the weight moves from teacher to reward.
Differs from the paper: distillation is on the teacher's answers, not on the student's own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.protocols import Divergence
from supertiny.training.align import compared, on_teacher_support
from supertiny.training.asking import TEXT_LEVEL
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
    takes = ("live_teacher",)

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
        """Yields a record per step, with rewards and the policy's weight.

        Raises UserError before the first step where a live teacher has other tokens than the pupil.
        """
        if teacher is not None:
            if compared(teacher.tokenizer, pupil.tokenizer) == "different":
                raise UserError("the teacher has another tokenizer than the student", TEXT_LEVEL)
            teacher.model.eval()
        rules = Rules(self.reward, self.samples, self.temperature, self.redraws, 0.0, self.least_signal)
        trials = Trials(pupil, practice, rules, lessons, seed)
        if checkpoint is None or not checkpoint.exists():
            trials.check_signal()
        both = _Both(pupil, teacher, build("divergences", self.divergence), self.top_k, self.temperature)

        def draw(group: Sequence[Lesson], step: int) -> list[Lesson]:
            along = step / max(1, steps_of(len(lessons), self.rows, self.passes) - 1)
            both.share = (1 - along) * self.policy_share_first + along * self.policy_share_last
            # A group stands in the order of its lengths: its first would always be the shortest.
            asked = random.Random(f"{seed} {step}").sample(list(group), min(self.asked, len(group)))
            rows = [*group, *trials.drawn(asked, step)]
            both.count(rows)
            return rows

        told = lambda: {**trials.told, "policy_share": both.share}  # noqa: E731
        return descend(pupil, lessons, Plan.of(self, seed), both, checkpoint, every, draw, told)


@dataclass
class _Both:
    """The loss of a batch of taught answers and the student's own: the sum of both kinds' means over the step.

    Counts are of the whole step, so that a batch in parts is worth the same.
    """

    pupil: Pupil
    teacher: Pupil | None
    divergence: Divergence
    top_k: int
    temperature: float
    share: float = 0.0
    own: int = 0
    taught: int = 0

    def __post_init__(self) -> None:
        self.policy = PolicyLoss(0.2, 0.28, 0.0, True, self.temperature)

    def count(self, rows: Sequence[Lesson]) -> None:
        """Answer tokens of the step, by who wrote them."""
        lengths = [(isinstance(row, Trial), len(row.ids) - row.answer_start) for row in rows]
        self.own = sum(length for own, length in lengths if own)
        self.taught = sum(length for own, length in lengths if not own)

    def __call__(self, batch: Batch) -> torch.Tensor:
        logits = self.pupil.logits_at(batch.ids, batch.mask, batch.wanted)
        own = torch.tensor([isinstance(row, Trial) for row in batch.rows], device=logits.device)
        mine = own[batch.row_of_position]
        losses = torch.zeros_like(logits[:, 0])
        if mine.any():
            tried = Batch(batch.ids, batch.mask, batch.wanted & own[:, None], batch.targets[mine], batch.rows)
            losses[mine] = (1 + self.taught / self.own) * self.share * self.policy(logits[mine], tried)
        if not mine.all():
            losses[~mine] = (1 + self.own / self.taught) * (1 - self.share) * self._known(logits[~mine], batch, ~mine)
        return losses.mean()

    def _known(self, logits: torch.Tensor, batch: Batch, here: torch.Tensor) -> torch.Tensor:
        if self.teacher is None:
            return torch.nn.functional.cross_entropy(logits, batch.targets[here], reduction="none")
        with torch.no_grad():
            wise = self.teacher.logits_at(batch.ids, batch.mask, batch.wanted)[here]
        return self.divergence(*on_teacher_support(wise, logits, self.top_k))
