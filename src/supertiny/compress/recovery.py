"""What a step took from the student is taught again, by the student as it was before the first step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.compress.changing import all_matrices, held_zeros
from supertiny.compress.layers import attached
from supertiny.compress.reshapers._tokenizer import cut_rows, places_in
from supertiny.compress.settings import Settings
from supertiny.compress.steps import Step
from supertiny.core.methods import build
from supertiny.core.protocols import Format
from supertiny.core.records import Example
from supertiny.core.run import Run
from supertiny.training.grid import on_grid, settle
from supertiny.training.lessons import Batch, Lesson, collate, encode_lessons
from supertiny.training.practice import Practice
from supertiny.training.pupil import Pupil

_CHECKPOINT_STEPS = 25
_ROWS = 32  # of a calibration batch


@dataclass(frozen=True)
class Recovery:
    """Lessons of the train rows, and the learner that the recipe names."""

    settings: Settings
    run: Run
    form: Format
    original: Path
    """Folder of the student before the first step."""
    examples: Sequence[Example]
    checkpoint: Path
    """Where a stopped recovery goes on from."""

    def lessons(self, pupil: Pupil, rows: int | None) -> list[Lesson]:
        """Of `rows` examples drawn by the seed, all where it is None, in the pupil's own tokens."""
        examples = list(self.examples)
        random.Random(self.run.seed).shuffle(examples)
        tools, longest = self.run.task.tools, self.settings.longest_tokens
        setting, note = "compress.longest_tokens", self.run.progress.note
        return encode_lessons(examples[:rows], self.form, tools, pupil.tokenizer, longest, setting, note)

    def batches(self, lessons: Sequence[Lesson], pupil: Pupil) -> list[Batch]:
        """For calibration: rows of similar length stand together."""
        pad = pupil.tokenizer.pad_token_id
        pad = int(pupil.tokenizer.eos_token_id if pad is None else pad)
        ordered = sorted(lessons, key=lambda lesson: len(lesson.ids))
        return [collate(ordered[start : start + _ROWS], pad) for start in range(0, len(ordered), _ROWS)]

    def teach(self, title: str, pupil: Pupil, step: Step, grid: str, hold_zeros: bool) -> None:
        """Lets the learner teach the pupil, through the step's method where that trains; it ends on the grid."""
        learner = build("learners", self.settings.recovery, "compress.recovery")
        lessons = self.lessons(pupil, self.settings.recovery_rows)
        supplied = self._supplied(learner, pupil)
        total = -(-len(lessons) // learner.rows) * learner.passes
        with self.run.progress.task(f"recovering after {title}", total, "steps") as tick:
            done = 0
            with self._learning(pupil, step, grid, hold_zeros):
                seed = self.run.seed
                for record in learner.fit(pupil, lessons, seed, self.checkpoint, _CHECKPOINT_STEPS, **supplied):
                    tick(record.step - done)
                    done = record.step
        self.checkpoint.unlink(missing_ok=True)
        settle(pupil.model.float(), grid)

    @contextmanager
    def _learning(self, pupil: Pupil, step: Step, grid: str, hold_zeros: bool) -> Iterator[None]:
        with ExitStack() as within:
            if step.trains:
                within.enter_context(trained_through(step, pupil.model, self.run.seed, hold_zeros))
            else:
                within.enter_context(held_zeros(pupil.model, hold_zeros))
                within.enter_context(on_grid(pupil.model, grid))
            yield

    def _supplied(self, learner: Any, pupil: Pupil) -> dict[str, Any]:
        """Keywords of the learner's `fit`, by its `needs`."""
        needs = {word for need in getattr(learner, "needs", ()) for word in need.split("|")}
        supplied: dict[str, Any] = {}
        if "live_teacher" in needs:
            supplied["teacher"] = self._teacher(pupil)
        if "practice" in needs:
            task = self.run.task
            supplied["practice"] = Practice(self.form, task.tools, task.verify, (), self.settings.max_tokens)
        return supplied

    def _teacher(self, pupil: Pupil) -> Pupil:
        """The student before the first step.

        Where a step trimmed the vocabulary, the teacher keeps the rows of the same tokens alone: lessons are then the
        same ids for both, and its probabilities are those that it gives to tokens which the pupil can still write. A
        bucket for the rest would ask the pupil for a mass that it has no place for.
        """
        teacher = Pupil.open(self.original)
        if len(teacher.tokenizer) != len(pupil.tokenizer):
            teacher.model = cut_rows(teacher.model, places_in(teacher.tokenizer, pupil.tokenizer))
            teacher.tokenizer = pupil.tokenizer
        return teacher


@contextmanager
def trained_through(step: Step, model: Any, seed: int, hold_zeros: bool = False) -> Iterator[None]:
    """Within it the matrices are trained through the step's method; at its end they are what the method leaves."""
    settings = {"sparsity": step.sparsity} if step.family == "pruners" else {}
    zeros = {name: layer.weight.detach() == 0 for name, layer in all_matrices(model).items()} if hold_zeros else {}
    with attached(model, step.method, seed, **settings):
        yield
    for name, layer in all_matrices(model).items():
        if name in zeros:
            layer.weight.data.masked_fill_(zeros[name], 0)
