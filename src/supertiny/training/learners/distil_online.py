"""Distils on the student's own answers: a live teacher says at each of their tokens what it would have written.

Paper: Agarwal et al., GKD: on-policy distillation of language models, 2023, arXiv:2306.13649.
Use when: the student makes mistakes that no taught answer shows, and a teacher with the same tokenizer is at hand.
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
from supertiny.training.align import compared, on_teacher_support
from supertiny.training.asking import TEXT_LEVEL
from supertiny.training.learners._policy import seed_of
from supertiny.training.lessons import Batch, Lesson, Trial
from supertiny.training.loop import Plan, Step, descend
from supertiny.training.practice import Practice
from supertiny.training.pupil import Pupil
from supertiny.training.rollout import roll_out


@dataclass(frozen=True)
class DistilOnline:
    """Loss = divergence(teacher, student) on answer tokens; a share of the answers are the student's own samples."""

    divergence: Any = field(default="jensen_shannon", metadata={"family": "divergences"})
    """A method of the family divergences."""
    student_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of rows that the student answers itself; the others keep their answer."""
    learning_rate: float = 1e-4
    """Peak of the cosine schedule."""
    passes: int = 1
    """Times that each lesson is seen."""
    rows: int = 16
    """Rows of a batch."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the sampling."""
    top_k: int = 64
    """Number of the teacher's most probable tokens that are told apart."""
    weight_decay: float = 0.0
    """AdamW's decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""

    needs = ("live_teacher", "practice")

    def fit(
        self,
        pupil: Pupil,
        lessons: Sequence[Lesson],
        seed: int,
        checkpoint: Path | None = None,
        every: int = 0,
        *,
        teacher: Pupil,
        practice: Practice,
    ) -> Iterator[Step]:
        """Yields a record per step. Raises UserError before the first where teacher and pupil share no vocabulary."""
        if compared(teacher.tokenizer, pupil.tokenizer) == "different":
            raise UserError("the teacher has another tokenizer than the student", TEXT_LEVEL)
        divergence = build("divergences", self.divergence)
        teacher.model.eval()

        def draw(group: Sequence[Lesson], step: int) -> list[Lesson]:
            generator = random.Random(f"{seed} {step}")
            own = [lesson for lesson in group if lesson.example is not None and generator.random() < self.student_share]
            written = roll_out(pupil, own, practice, 1, seed_of(seed, step), self.temperature)
            answered: dict[int, Lesson] = {}
            for lesson, (sample,) in zip(own, written, strict=True):
                prompt = lesson.ids[: lesson.answer_start]
                answered[id(lesson)] = Trial((*prompt, *sample.ids), len(prompt), lesson.example)
            return [answered.get(id(lesson), lesson) for lesson in group]

        def loss_of(batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                wise = teacher.logits_at(batch.ids, batch.mask, batch.wanted)
            logits = pupil.logits_at(batch.ids, batch.mask, batch.wanted)
            apart: torch.Tensor = divergence(*on_teacher_support(wise, logits, self.top_k))
            return apart.mean()

        return descend(pupil, lessons, Plan.of(self, seed), loss_of, checkpoint, every, draw)
