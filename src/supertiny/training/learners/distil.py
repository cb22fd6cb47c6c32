"""Learns a teacher's token probabilities on the answers, mixed with the answers themselves.

Paper: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
Use when: a teacher with the same tokenizer is at hand, for instance the student before it was pruned.
Differs from the paper: the teacher's k best tokens plus one bucket for the rest, no temperature by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from supertiny.core.methods import build
from supertiny.training.align import on_teacher_support
from supertiny.training.lessons import Batch, Lesson
from supertiny.training.loop import Plan, Step, descend
from supertiny.training.pupil import Pupil


@dataclass(frozen=True)
class Distil:
    """Loss = (1 - truth_share) * divergence(teacher, student) + truth_share * cross-entropy, on answer tokens."""

    divergence: Any = field(default="forward_kl", metadata={"family": "divergences"})
    """A method of the family divergences."""
    learning_rate: float = 2e-4
    """Peak of the cosine schedule."""
    passes: int = 2
    """Times that each lesson is seen."""
    rows: int = 32
    """Rows of a batch."""
    top_k: int = 64
    """Number of the teacher's most probable tokens that are told apart."""
    truth_share: float = 0.3
    """Share of the loss that is cross-entropy on the answer itself."""
    weight_decay: float = 0.0
    """AdamW's decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""

    needs = ("live_teacher",)

    def fit(
        self,
        pupil: Pupil,
        lessons: Sequence[Lesson],
        seed: int,
        checkpoint: Path | None = None,
        every: int = 0,
        *,
        teacher: Pupil,
    ) -> Iterator[Step]:
        """Yields a record per step. Teacher and pupil must share a vocabulary."""
        divergence = build("divergences", self.divergence)
        teacher.model.eval()

        def loss_of(batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                wise = teacher.logits_at(batch.ids, batch.mask, batch.wanted)
            logits = pupil.logits_at(batch.ids, batch.mask, batch.wanted)
            apart: torch.Tensor = divergence(*on_teacher_support(wise, logits, self.top_k)).mean()
            truth = torch.nn.functional.cross_entropy(logits, batch.targets)
            return (1 - self.truth_share) * apart + self.truth_share * truth

        plan = Plan(self.learning_rate, self.passes, self.rows, seed, weight_decay=self.weight_decay, clip=self.clip)
        return descend(pupil, lessons, plan, loss_of, checkpoint, every)
