"""Learns a teacher's token probabilities on the answers, mixed with the answers themselves.

Paper: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
Use when: a teacher's probabilities are at hand: a loaded model, or scores that any engine gave once.
Differs from the paper: the teacher's k best tokens plus one bucket for the rest, no temperature. Where the teacher has
other tokens, spans of text that both cut alike are compared instead, each against all else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from supertiny.core.methods import build
from supertiny.core.protocols import Divergence
from supertiny.training.align import compared, on_spans, on_stored_support, on_teacher_support
from supertiny.training.lessons import Batch, Lesson
from supertiny.training.loop import Plan, Step, descend
from supertiny.training.pupil import Pupil
from supertiny.training.scores import Scores


@dataclass(frozen=True)
class Distil:
    """Loss = (1 - truth_share) * divergence(teacher, student) + truth_share * cross-entropy, on answer tokens.

    Answer tokens of which stored scores say nothing are learned from the answer alone.
    """

    divergence: Any = field(default="forward_kl", metadata={"family": "divergences"})
    """A method of the family divergences."""
    learning_rate: float = 2e-4
    """Peak of the cosine schedule."""
    passes: int = 2
    """Times that each lesson is seen."""
    rows: int = 32
    """Rows of a batch."""
    top_k: int = 64
    """Number of the teacher's most probable tokens that are told apart, where it says so many."""
    truth_share: float = 0.3
    """Share of the loss that is cross-entropy on the answer itself."""
    weight_decay: float = 0.0
    """AdamW's decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""

    needs = ("live_teacher|token_scores",)

    def fit(
        self,
        pupil: Pupil,
        lessons: Sequence[Lesson],
        seed: int,
        checkpoint: Path | None = None,
        every: int = 0,
        *,
        teacher: Pupil | None = None,
        scores: Scores | None = None,
    ) -> Iterator[Step]:
        """Yields a record per step, by a teacher or by its stored scores, one of both.

        Raises UserError before the first step where the teacher cannot be aligned, or the scores are of other lessons.
        """
        if (teacher is None) == (scores is None):
            raise TypeError("distil takes a teacher or scores, one of both")
        divergence = build("divergences", self.divergence)
        if teacher is not None and compared(teacher.tokenizer, pupil.tokenizer) == "different":
            scores = Scores.of_pupil(teacher, "the teacher", lessons, pupil.tokenizer)
        if scores is not None:
            scores.check(lessons, pupil.model.get_output_embeddings().weight.shape[0])
            loss_of = self._by_scores(pupil, scores.best(self.top_k), divergence)
        elif teacher is not None:
            loss_of = self._by_teacher(pupil, teacher, divergence)
        return descend(pupil, lessons, Plan.of(self, seed), loss_of, checkpoint, every)

    def _by_teacher(self, pupil: Pupil, teacher: Pupil, divergence: Divergence) -> Callable[[Batch], torch.Tensor]:
        teacher.model.eval()

        def loss_of(batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                wise = teacher.logits_at(batch.ids, batch.mask, batch.wanted)
            logits = pupil.logits_at(batch.ids, batch.mask, batch.wanted)
            apart = divergence(*on_teacher_support(wise, logits, self.top_k)).mean()
            truth = torch.nn.functional.cross_entropy(logits, batch.targets)
            return (1 - self.truth_share) * apart + self.truth_share * truth

        return loss_of

    def _by_scores(self, pupil: Pupil, scores: Scores, divergence: Divergence) -> Callable[[Batch], torch.Tensor]:
        def loss_of(batch: Batch) -> torch.Tensor:
            said = scores.of(batch)
            logits = pupil.logits_at(batch.ids, batch.mask, batch.wanted)
            truth = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
            share = torch.ones_like(truth)  # of each token's loss that is the answer's
            apart = truth.new_zeros(())
            if len(said.places):
                share[said.places] = self.truth_share
                apart = apart + divergence(*on_stored_support(said.ids, said.logprobs, logits[said.places])).sum()
            if len(said.spans):
                share[said.spans[said.spans >= 0]] = self.truth_share
                apart = apart + divergence(*on_spans(said.spans, said.span_logprobs, logits, batch.targets)).sum()
            return ((1 - self.truth_share) * apart + (share * truth).sum()) / len(truth)

        return loss_of
