"""Cross-entropy on the answers of verified examples: supervised fine-tuning.

Paper: the first half of the transfer stage of From Large to Super-Tiny, 2025, arXiv:2504.13471.
Use when: always; every student starts here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from supertiny.training.lessons import Lesson
from supertiny.training.loop import Plan, Step, descend
from supertiny.training.pupil import Pupil


@dataclass(frozen=True)
class Imitate:
    """Loss on answer tokens only; logits are computed only where there is loss."""

    learning_rate: float = 3e-4
    """Peak of the cosine schedule."""
    passes: int = 4
    """Times that each lesson is seen."""
    rows: int = 32
    """Rows of a batch."""
    weight_decay: float = 0.01
    """AdamW's decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""

    def fit(
        self,
        pupil: Pupil,
        lessons: Sequence[Lesson],
        seed: int,
        checkpoint: Path | None = None,
        every: int = 0,
    ) -> Iterator[Step]:
        """Yields a record per step; goes on from `checkpoint` where it exists, and saves one `every` so many steps."""

        return descend(pupil, lessons, Plan.of(self, seed), pupil.answer_loss, checkpoint, every)
