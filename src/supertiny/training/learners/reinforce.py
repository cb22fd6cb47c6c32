"""Learns from its own answers: those better than the others to the same request get likelier (GRPO).

Paper: Shao et al., DeepSeekMath, 2024, arXiv:2402.03300; re-drawing and the wider upper bound are of DAPO, 2025,
arXiv:2503.14476.
Use when: the student is right sometimes, and a verifier or gold answers can tell when; not before it has been taught.
Differs from the paper: the loss is a mean over all answer tokens of a batch (DAPO), and one update a draw by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.training.learners._policy import PolicyLoss, Rules, Trials
from supertiny.training.lessons import Batch, Lesson
from supertiny.training.loop import Plan, Step, descend
from supertiny.training.practice import Practice
from supertiny.training.pupil import Pupil


@dataclass(frozen=True)
class Reinforce:
    """Per step: `samples` answers to each of `rows` requests, rewards against their group's mean, one clipped update.

    Requests whose answers are all worth the same are dropped and others drawn. Before the first step it looks whether
    there is signal at all, and refuses where there is none.
    """

    reward: Any = field(default="similarity", metadata={"family": "rewards"})
    """A method of the family rewards."""
    learning_rate: float = 1e-5
    """Peak of the cosine schedule."""
    passes: int = 1
    """Times that each request is asked."""
    rows: int = 8
    """Requests of a step."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Answers to each of them."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the sampling."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """A token's probability counts down to 1 - this of what it was."""
    clip_high: Annotated[float, Field(gt=0)] = 0.28
    """And up to 1 + this."""
    kl: Annotated[float, Field(ge=0)] = 0.0
    """Pull towards the student before training, 0.001 in STAR; a copy of it is then held in memory."""
    redraws: Annotated[int, Field(ge=0)] = 2
    """Times that requests without signal are replaced in a step."""
    updates: Annotated[int, Field(ge=1)] = 1
    """Steps of the optimiser on the same answers."""
    least_signal: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of requests whose answers must differ in reward before training starts."""
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
    ) -> Iterator[Step]:
        """Yields a record per step, with mean reward, share of requests with signal, and length of answers."""
        rules = Rules(self.reward, self.samples, self.temperature, self.redraws, self.kl, self.least_signal)
        trials = Trials(pupil, practice, rules, lessons, seed)
        if checkpoint is None or not checkpoint.exists():
            trials.check_signal()
        policy = PolicyLoss(self.clip_low, self.clip_high, self.kl, self.updates == 1, self.temperature)

        def loss_of(batch: Batch) -> torch.Tensor:
            return policy(pupil.logits_at(batch.ids, batch.mask, batch.wanted), batch).mean()

        plan = Plan.of(self, seed)
        return descend(pupil, trials.asked, plan, loss_of, checkpoint, every, trials.drawn, lambda: trials.told)
