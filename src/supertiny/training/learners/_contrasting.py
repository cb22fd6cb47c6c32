"""An expert against an amateur on the same prefixes: where they differ, and what the expert should lean to there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from supertiny.core.errors import UserError
from supertiny.training.learners._blocks import blocks_of, skipping
from supertiny.training.lessons import Batch, Lesson, collate
from supertiny.training.pupil import Pupil

_WIDEST = 64  # tokens of an aim; at alpha 0.2 there are rarely more than five

Logprobs = Callable[[Batch], torch.Tensor]
"""A batch to (positions, vocabulary) natural-log probabilities."""


@dataclass(frozen=True)
class Aim:
    """Targets at the kept positions of an answer, on the CPU until they are needed."""

    places: torch.Tensor
    """(kept,) which of the answer's tokens."""
    tokens: torch.Tensor
    """(kept, width) token ids."""
    shares: torch.Tensor
    """(kept, width) probabilities that sum to one; 0 where there are fewer tokens than that."""
    answers: int
    """Tokens of the answer."""


@contextmanager
def amateur_of(pupil: Pupil, folder: Path | None, skipped_share: float) -> Iterator[Logprobs]:
    """The weaker model: one of its own, or the pupil while its top blocks do nothing."""
    if folder is not None:
        weaker = Pupil.open(folder, "float32" if next(pupil.model.parameters()).dtype == torch.float32 else "bfloat16")
        if weaker.tokenizer.get_vocab() != pupil.tokenizer.get_vocab():
            raise UserError(f"the amateur {folder} has other tokens than the student", "take one of its own family")
        weaker.model.to(pupil.device).eval()
        yield lambda batch: _logprobs(weaker, batch)
        return
    blocks = blocks_of(pupil.model)
    if len(blocks) < 2:
        raise UserError("a student of one block has no top blocks to skip", "give the folder of an amateur")
    skipped = min(max(1, round(skipped_share * len(blocks))), len(blocks) - 1)

    def without_top(batch: Batch) -> torch.Tensor:
        with skipping(blocks[-skipped:]):
            return _logprobs(pupil, batch)

    yield without_top


@torch.no_grad()
def aims_of(
    pupil: Pupil, amateur: Logprobs, lessons: Sequence[Lesson], rows: int, beta: float, alpha: float
) -> dict[tuple[tuple[int, ...], int], Aim]:
    """The aim of each lesson, by its ids and the start of its answer."""
    found = {}
    pupil.model.eval()
    in_order = sorted(lessons, key=lambda lesson: len(lesson.ids))
    for start in range(0, len(in_order), rows):
        group = in_order[start : start + rows]
        batch = collate(group, pupil.pad_id).to(pupil.device)
        strong, weak = _logprobs(pupil, batch), amateur(batch)
        width = min(strong.shape[-1], weak.shape[-1])  # padded vocabularies
        places, tokens, shares = aimed(strong[:, :width], weak[:, :width], beta, alpha)
        of_row = batch.row_of_position
        for row, lesson in enumerate(group):
            first = int((of_row < row).sum())
            answers = int((of_row == row).sum())
            own = (places >= first) & (places < first + answers)
            found[lesson.ids, lesson.answer_start] = Aim(
                (places[own] - first).cpu(), tokens[own].cpu(), shares[own].cpu(), answers
            )
    return found


def aimed(
    strong: torch.Tensor, weak: torch.Tensor, beta: float, alpha: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(kept positions, their tokens (kept, width), their shares) of two (positions, vocabulary) log-probabilities.

    Kept is a position whose KL(strong || weak) is at least beta. Its shares are the softmax of strong - weak over the
    tokens that `strong` gives at least alpha times its best one's probability.
    """
    strong, weak = strong.log_softmax(-1), weak.log_softmax(-1)
    apart = (strong.exp() * (strong - weak)).sum(-1)
    places = (apart >= beta).nonzero()[:, 0]
    best, tokens = strong[places].topk(min(_WIDEST, strong.shape[-1]), dim=-1)
    plausible = best.exp() >= alpha * best[:, :1].exp()
    lead = (best - weak[places].gather(-1, tokens)).masked_fill(~plausible, -torch.inf)
    return places, tokens, lead.softmax(-1)


def _logprobs(pupil: Pupil, batch: Batch) -> torch.Tensor:
    return torch.log_softmax(pupil.logits_at(batch.ids, batch.mask, batch.wanted), dim=-1)
