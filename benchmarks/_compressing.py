"""What the benchmarks of compression share: a student that is taught once, calibration rows, and one exam for all."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._selecting import task_with_pool
from benchmarks.data_selection import content_of
from supertiny.core.files import hash_of
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.records import Example
from supertiny.core.scoring import is_exact
from supertiny.core.student import Student
from supertiny.core.task import Task
from supertiny.engines._huggingface import huggingface_folder
from supertiny.engines._torch_engine import TorchEngine
from supertiny.engines.torch import Torch
from supertiny.formats._answerer import ModelAnswerer
from supertiny.training.lessons import Batch, Lesson, collate, encode_lessons
from supertiny.training.loop import steps_of
from supertiny.training.pupil import Pupil

STUDENT = "smollm2-135m-instruct-q4_1"
LEARNER = {"method": "imitate", "passes": 3, "rows": 16, "learning_rate": 3e-4}
FORMAT = "compact"
SEED = 7
ROWS = 1000  # gold rows that a student is taught with
CALIBRATION_ROWS = 128
LONGEST = 512  # tokens of a lesson
MAX_TOKENS = 96  # of an answer
AT_ONCE = 32
_ROUNDS = 10_000


@dataclass(frozen=True)
class Exam:
    """What a model is worth on valid, row by row: greedy answers without a grammar, and gold's answer tokens."""

    hits: tuple[bool, ...]
    losses: tuple[float, ...]
    """Sum over the row's answer tokens of -log p, in nats."""
    tokens: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        return float(np.exp(sum(self.losses) / max(1, sum(self.tokens))))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Exam:
        return cls(tuple(row["hits"]), tuple(row["losses"]), tuple(row["tokens"]))


def task_and_gold(name: str, data: Path | None, rows: int) -> tuple[Task, list[Example]]:
    """A task, and the first of its labelled rows and of its pool with gold answers."""
    task, pool = task_with_pool(name, data, SEED)
    return task, [*task.labelled, *pool][:rows]


def taught(
    task: Task,
    rows: Sequence[Example],
    learner: Mapping[str, Any],
    folder: Path,
    progress: Progress,
    base: str = STUDENT,
) -> Path:
    """A stock folder of bfloat16 weights, of the base model taught with these rows; made once, goes on after a kill."""
    place = folder / f"student-{hash_of([base, task.name, task.hash, content_of(rows), dict(learner), FORMAT, SEED])}"
    if place.is_dir():
        return place
    pupil = Pupil.open(huggingface_folder(base, "--base"))
    lessons = lessons_of(rows, task, pupil)
    method = build("learners", learner)
    checkpoint = folder / f".{place.name}.safetensors"
    with progress.task("teaching the student", steps_of(len(lessons), method.rows, method.passes), "steps") as tick:
        done = 0
        for step in method.fit(pupil, lessons, SEED, checkpoint, 50):
            tick(step.step - done)
            done = step.step
    beside = folder / f".{place.name}"
    shutil.rmtree(beside, ignore_errors=True)
    pupil.save(beside)
    Student(beside, FORMAT, base, SEED).save_card()
    beside.rename(place)
    checkpoint.unlink(missing_ok=True)
    return place


def lessons_of(rows: Sequence[Example], task: Task, pupil: Pupil) -> list[Lesson]:
    return encode_lessons(rows, build("formats", FORMAT), task.tools, pupil.tokenizer, LONGEST)


def calibration_lessons(rows: Sequence[Example], task: Task, pupil: Pupil, count: int) -> list[Lesson]:
    """So many of the rows, drawn by seed, as the student is taught them."""
    shuffled = list(rows)
    random.Random(SEED).shuffle(shuffled)
    return lessons_of(shuffled[:count], task, pupil)


def in_batches(lessons: Sequence[Lesson], pad: int) -> list[Batch]:
    """Rows of like length together, so that little is padding."""
    ordered = sorted(lessons, key=lambda lesson: len(lesson.ids))
    return [collate(ordered[start : start + AT_ONCE], pad) for start in range(0, len(ordered), AT_ONCE)]


def examined(pupil: Pupil, task: Task, valid: Sequence[Example]) -> Exam:
    """The model as it is in memory, by the engine of PyTorch."""
    pupil.model.eval()
    form = build("formats", FORMAT)
    engine = TorchEngine(Torch(max_batch=AT_ONCE), Path(), "pupil", pupil.model, pupil.tokenizer)
    answerer = ModelAnswerer("pupil", engine, form, task.tools, MAX_TOKENS, constrained=False)
    answers = answerer.answer([row.request for row in valid])
    gold = [row.answer.calls if row.answer else () for row in valid]
    hits = tuple(is_exact(answer, calls, task.tool_map) for answer, calls in zip(answers, gold, strict=True))
    return Exam(hits, *losses_on(pupil, lessons_of(valid, task, pupil)))


@torch.inference_mode()
def losses_on(pupil: Pupil, lessons: Sequence[Lesson]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """(sum of -log p over the answer tokens, their number) of each lesson, in order."""
    losses, tokens = np.zeros(len(lessons)), np.zeros(len(lessons), int)
    order = sorted(range(len(lessons)), key=lambda place: len(lessons[place].ids))
    for start in range(0, len(order), AT_ONCE):
        places = order[start : start + AT_ONCE]
        batch = collate([lessons[place] for place in places], pupil.pad_id).to(pupil.device)
        logits = pupil.logits_at(batch.ids, batch.mask, batch.wanted)
        each = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none").double().cpu()
        rows = batch.row_of_position.cpu()
        losses[places] = torch.zeros(len(places), dtype=torch.double).index_add_(0, rows, each).numpy()
        tokens[places] = torch.bincount(rows, minlength=len(places)).numpy()
    return tuple(losses.tolist()), tuple(tokens.tolist())


def perplexity_ratio(left: Exam, right: Exam) -> tuple[float, float, float]:
    """(left's perplexity over right's, low, high): 95 % of a bootstrap in which both have the same rows.

    Raises ValueError where the two were not asked for the same tokens.
    """
    if left.tokens != right.tokens or not left.tokens:
        raise ValueError("exams of different rows")
    apart, tokens = np.subtract(left.losses, right.losses), np.array(left.tokens, float)
    generator = np.random.default_rng(0)
    drawn = np.empty(_ROUNDS)
    for start in range(0, _ROUNDS, 500):  # in blocks, so that memory stays small
        places = generator.integers(0, len(tokens), (min(500, _ROUNDS - start), len(tokens)))
        drawn[start : start + 500] = apart[places].sum(axis=1) / tokens[places].sum(axis=1)
    low, high = np.exp(np.percentile(drawn, [2.5, 97.5]))
    return float(np.exp(apart.sum() / tokens.sum())), float(low), float(high)
