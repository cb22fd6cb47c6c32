"""Rejection-sampling fine-tuning: the student answers, the verifier keeps, the student learns what was kept.

Paper: Yuan et al., Scaling relationship on learning mathematical reasoning (RFT), 2023, arXiv:2308.01825; rounds as in
Zelikman et al., STaR, 2022, arXiv:2203.14465; votes as in Huang et al., LLMs can self-improve, 2022, arXiv:2210.11610.
Use when: requests without trusted answers are left over, and the student is right about them more often than not.
Differs from the paper: where there is no gold, a majority of the student's own answers must agree beside the verifier.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from supertiny.core.files import read_json, write_json
from supertiny.core.scoring import is_exact, plain_call
from supertiny.training.learners._policy import seed_of
from supertiny.training.lessons import Batch, Lesson, grouped
from supertiny.training.loop import Plan, Step, descend, steps_of
from supertiny.training.practice import Practice, Sample
from supertiny.training.pupil import Pupil
from supertiny.training.rollout import roll_out


@dataclass(frozen=True)
class Reject:
    """Each pass is a round: `samples` answers to every request, kept ones join the lessons, and both are learned.

    To a request with a trusted answer only samples that say the same are kept, in other spellings; to one without,
    the answer on which the samples agree, if the verifier does not fail it.
    """

    learning_rate: float = 1e-4
    """Peak of the cosine schedule."""
    passes: int = 2
    """Rounds; each has as many steps as there are requests, answered or not, over lessons and kept answers."""
    rows: int = 16
    """Rows of a batch."""
    samples: Annotated[int, Field(ge=1)] = 8
    """Answers to each request in a round."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    """Of the sampling."""
    least_votes: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Share of a request's samples that must say the same where there is no trusted answer."""
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
        """Yields a record per step, with the number of kept answers; kept ones stand in files beside `checkpoint`."""
        asked = [*lessons, *practice.unanswered]
        per_round = steps_of(len(asked), self.rows, 1)
        kept: list[Lesson] | None = None
        rows: list[Lesson] = []
        starts: list[int] = []  # of each step's rows in the round

        def draw(group: Sequence[Lesson], step: int) -> list[Lesson]:
            nonlocal kept, rows, starts
            number, place = divmod(step, per_round)
            known = checkpoint and checkpoint.with_name(f"{checkpoint.stem}-round-{number}.json")
            if place == 0 or kept is None:
                kept = self._kept(pupil, lessons, practice, seed_of(seed, number), known)
                rows = [*lessons, *kept]
                random.Random(f"{seed} {number}").shuffle(rows)
                # A group may be shorter than the others wherever it stands, and a resume begins anywhere.
                starts = [0, *accumulate(map(len, grouped(asked, self.rows, seed + number)))]
            # As many rows as there are requests: where fewer are at hand, a round ends with some seen again.
            return [rows[(starts[place] + n) % len(rows)] for n in range(len(group) if rows else 0)]

        def loss_of(batch: Batch) -> torch.Tensor:
            logits = pupil.logits_at(batch.ids, batch.mask, batch.wanted)
            return torch.nn.functional.cross_entropy(logits, batch.targets)

        told = lambda: {"kept": float(len(kept or ()))}  # noqa: E731
        return descend(pupil, asked, Plan.of(self, seed), loss_of, checkpoint, every, draw, told)

    def _kept(
        self, pupil: Pupil, lessons: Sequence[Lesson], practice: Practice, seed: int, known: Path | None
    ) -> list[Lesson]:
        """Answers of this round, read back where a stopped training had them already."""
        if known is not None and known.exists():
            rows = dict(enumerate([*lessons, *practice.unanswered]))
            return [Lesson(tuple(row["ids"]), row["start"], rows[row["of"]].example) for row in read_json(known)]
        asked = [*lessons, *practice.unanswered]
        pupil.note(f"  {self.samples} answers to each of {len(asked)} requests")
        written = roll_out(pupil, asked, practice, self.samples, seed, self.temperature)
        found = [
            (place, Lesson((*lesson.ids[: lesson.answer_start], *sample.ids), lesson.answer_start, lesson.example))
            for place, (lesson, samples) in enumerate(zip(asked, written, strict=True))
            for sample in self._right(pupil, lesson, samples, practice)
        ]
        new = sum(place >= len(lessons) for place, _ in found)
        pupil.note(f"  {len(found)} answers kept, {new} of them to requests without a trusted one")
        if known is not None:
            write_json(known, [{"of": place, "ids": list(row.ids), "start": row.answer_start} for place, row in found])
        return [lesson for _, lesson in found]

    def _right(self, pupil: Pupil, lesson: Lesson, samples: Sequence[Sample], practice: Practice) -> list[Sample]:
        """Samples to learn from, no two of the same text, none of the text that the lesson has already."""
        example = lesson.example
        tools = {tool.name: tool for tool in (example.request.tools if example else ()) or practice.tools}
        if example is not None and example.answer is not None:
            gold = example.answer.calls
            # By text: other tokens of the same text would teach a spelling in tokens that no tokenizer makes.
            unique = {sample.text: sample for sample in samples}
            unique.pop(_text_of(pupil, lesson, practice), None)
            return [s for s in unique.values() if s.answer and is_exact(s.answer, gold, tools)]
        said: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if sample.answer is not None and sample.verdict.outcome != "fail":
                said[json.dumps(sorted(plain_call(call, tools) for call in sample.answer.calls))].append(sample)
        most = max(said.values(), key=len, default=[])
        return most[:1] if len(most) >= self.least_votes * len(samples) else []


def _text_of(pupil: Pupil, lesson: Lesson, practice: Practice) -> str:
    """The lesson's own answer, as a sample of the same tokens would read."""
    stop = pupil.id_of(practice.form.stop)
    words = [token for token in lesson.ids[lesson.answer_start :] if token != stop]
    text: str = pupil.tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
