"""Learns where it is stronger than an amateur: at the tokens that tell both apart it leans further its own way.

Paper: Wang et al., LightReasoner, 2025, arXiv:2510.07962.
Use when: there is no better teacher, and the student already does well; few positions are learned, without a second
model in memory.
Differs from the paper: positions are those of verified answers and not of the expert's own samples; all kept positions
of a row are learned; the verified token itself is learned at all positions, by `truth_share`; the amateur may be the
student without its top blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.training.learners._contrasting import Aim, aims_of, amateur_of
from supertiny.training.lessons import Batch, Lesson
from supertiny.training.loop import Plan, Step, descend
from supertiny.training.pupil import Pupil


@dataclass(frozen=True)
class Contrast:
    """Loss = (1 - truth_share) * KL(aim || student) where it is kept + truth_share * cross-entropy on all tokens.

    The expert is the student as it starts; aim(token) ~ expert(token) / amateur(token) where the expert finds it fit.
    """

    beta: Annotated[float, Field(ge=0)] = 0.4
    """Least KL(expert || amateur) of a position that is kept, in nats."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Least probability of a plausible token, as a share of the likeliest one's."""
    amateur: Path | None = None
    """A Hugging Face folder with the same tokens; without it, the student itself without its top blocks."""
    skipped_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the blocks that such an amateur lacks."""
    truth_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the loss that is cross-entropy on the answer itself."""
    learning_rate: float = 5e-5
    """Peak of the cosine schedule."""
    passes: int = 1
    """Times that each lesson is seen."""
    rows: int = 16
    """Rows of a batch."""
    weight_decay: float = 0.0
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
        """Yields a record per step, with the share of its answer tokens that were kept."""
        # Both models are asked once, before the first step: a resume is given the same weights to start from.
        with amateur_of(pupil, self.amateur, self.skipped_share) as amateur:
            aims = aims_of(pupil, amateur, lessons, self.rows, self.beta, self.alpha)
        kept, of = sum(aim.places.numel() for aim in aims.values()), sum(aim.answers for aim in aims.values())
        pupil.note(f"  contrast: {kept} of {of} answer tokens tell the student from the amateur")
        if not kept and not self.truth_share:
            raise UserError("no position tells the student from the amateur", "lower beta, or take a weaker amateur")
        share = [0.0]

        def loss_of(batch: Batch) -> torch.Tensor:
            logits = pupil.logits_at(batch.ids, batch.mask, batch.wanted)
            logprobs = torch.log_softmax(logits, dim=-1)
            truth = torch.nn.functional.nll_loss(logprobs, batch.targets)
            aim = _joined([aims[row.ids, row.answer_start] for row in batch.rows], batch.targets.device)
            share[0] = aim.places.numel() / max(1, aim.answers)
            apart = _divergence(aim, logprobs) / max(1, aim.answers)
            return (1 - self.truth_share) * apart + self.truth_share * truth

        def told() -> Mapping[str, float]:
            return {"kept": share[0]}

        return descend(pupil, lessons, Plan.of(self, seed), loss_of, checkpoint, every, told=told)


def _divergence(aim: Aim, logprobs: torch.Tensor) -> torch.Tensor:
    """Sum over the kept positions of KL(aim || student)."""
    own = logprobs[aim.places].gather(-1, aim.tokens)
    apart: torch.Tensor = (torch.special.xlogy(aim.shares, aim.shares) - aim.shares * own).sum()
    return apart


def _joined(aims: Sequence[Aim], device: torch.device) -> Aim:
    """One aim of a batch's rows, whose positions stand one row after the other."""
    before, places = 0, []
    for aim in aims:
        places.append(aim.places + before)
        before += aim.answers
    tokens, shares = torch.cat([aim.tokens for aim in aims]), torch.cat([aim.shares for aim in aims])
    return Aim(torch.cat(places).to(device), tokens.to(device), shares.to(device), before)
