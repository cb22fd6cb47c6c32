"""Learns new rows and plain text of a domain while rows learned earlier come back, and measures what is forgotten.

Paper: Abbes et al., Revisiting replay and gradient alignment, 2025, arXiv:2508.01908; domain text as in Salahuddin et
al., Less Data, More Security, 2025, arXiv:2507.02964.
Use when: a student that was taught one task is taught another, or the language of a domain, and must keep the first.
Differs from the paper: earlier rows are a file at hand, gone through evenly, and no stream through a buffer; the text
is mixed with the rows from the first step; weights are drawn back after few steps, for short trainings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.training.learners._aligned import Aligned
from supertiny.training.learners._earlier import blocks_of_text, earlier_lessons, mean_loss, parted
from supertiny.training.learners._stepping import stepped
from supertiny.training.lessons import Lesson
from supertiny.training.loop import Plan, Step, steps_of
from supertiny.training.practice import Practice
from supertiny.training.pupil import Pupil

Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Continual:
    """Cross-entropy on batches of new rows, of earlier rows, and of text, all of whose tokens are learned."""

    replay: Path | None = None
    """Rows that were learned earlier: the train.jsonl of another run's prototype."""
    replay_share: Share = 0.25
    """Share of a batch's rows that are earlier ones; 0 only measures what is forgotten of them."""
    held_back: Annotated[int, Field(ge=1)] = 64
    """Earlier rows that are never learned, only measured; at most half of them."""
    domain: Path | None = None
    """Plain text of the domain, UTF-8."""
    domain_share: Share = 0.25
    """Share of a batch's rows that are blocks of the text."""
    block_tokens: Annotated[int, Field(ge=2)] = 128
    """Length of a block; each token of it counts as much as one of an answer."""
    reptile_steps: Annotated[int, Field(ge=0)] = 10
    """Steps after which weights are drawn back towards where they stood before them; 0 is never."""
    reptile_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the way that is kept then."""
    measured_steps: Annotated[int, Field(ge=1)] = 50
    """Steps after which what is forgotten is measured, beside the last."""
    longest_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest earlier row, in tokens."""
    learning_rate: float = 1e-4
    """Peak of the cosine schedule."""
    passes: int = 2
    """Times that each new row is seen."""
    rows: int = 32
    """New rows of a batch; earlier rows and text come on top."""
    weight_decay: float = 0.01
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
        """Yields a record per step. Where there are earlier rows, `retained` is the loss on those held back, and

        `forgotten` how much it went up since the start, both in nats per answer token.
        """
        known, held, text = self._material(pupil, practice, seed)
        start = mean_loss(pupil, held, self.rows) if held else 0.0  # a resume is given the same weights to start from
        total = steps_of(len(lessons), self.rows, self.passes)
        at = [0]
        shares = {"replay": self.replay_share if known else 0.0, "domain": self.domain_share if text else 0.0}
        new = 1 - sum(shares.values())
        if new <= 0:
            raise UserError("replay_share and domain_share leave no room for new rows", "their sum must be below 1")

        def draw(group: Sequence[Lesson], step: int) -> Sequence[Lesson]:
            at[0] = step + 1
            earlier = _dealt(known, len(group), shares["replay"] / new, step, self.rows)
            return [*group, *earlier, *_dealt(text, len(group), shares["domain"] / new, step, self.rows)]

        def told() -> Mapping[str, float]:
            if not held or (at[0] % self.measured_steps and at[0] != total):
                return {}
            retained = mean_loss(pupil, held, self.rows)
            return {"retained": retained, "forgotten": retained - start}

        plan = Plan.of(self, seed)
        mover = Aligned(pupil, plan, pupil.answer_loss, self.reptile_steps, self.reptile_rate)
        return stepped(pupil, lessons, plan, mover, checkpoint, every, draw, told)

    def _material(self, pupil: Pupil, practice: Practice, seed: int) -> tuple[list[Lesson], list[Lesson], list[Lesson]]:
        """Earlier rows to learn, earlier rows to measure, blocks of text; none where there is no file."""
        known: list[Lesson] = []
        held: list[Lesson] = []
        if self.replay:
            earlier = earlier_lessons(self.replay, pupil, practice, self.longest_tokens)
            known, held = parted(earlier, self.held_back, seed)
        text = blocks_of_text(self.domain, pupil.tokenizer, self.block_tokens, seed) if self.domain else []
        return known, held, text


def _dealt(rows: Sequence[Lesson], beside: int, ratio: float, step: int, full: int) -> list[Lesson]:
    """`ratio` times as many rows as stand beside them, at least one; one step goes on where the last one ended."""
    if not rows or not ratio:
        return []
    first = step * max(1, round(full * ratio))
    return [rows[(first + place) % len(rows)] for place in range(max(1, round(beside * ratio)))]
