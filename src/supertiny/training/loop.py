"""Gradient descent, once: master weights, clipping, schedule, checkpoints. A learner brings its loss."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of
from supertiny.training.lessons import Batch, Lesson, collate, grouped
from supertiny.training.optimiser import Optimiser, counts_of
from supertiny.training.pupil import Pupil
from supertiny.training.several import is_sharded, processes, share_of, sum_gradients, summed

Draw = Callable[[Sequence[Lesson], int], Sequence[Lesson]]
"""(the lessons whose turn it is, number of the step from 0) -> the rows that are learned from; none skips the step."""
_WINDOW = 10  # steps whose mean loss says whether training diverges
_DIVERGED = 3.0  # nats above the best such mean


@dataclass(frozen=True)
class Plan:
    """Hyperparameters that all gradient learners share."""

    learning_rate: float
    passes: int
    rows: int
    """Rows of a batch."""
    seed: int = 0
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of the gradient."""
    final_share: float = 0.05
    """Share of the learning rate at the end of the cosine."""
    updates: int = 1
    """Steps of the optimiser on what was drawn for one step."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All that a checkpoint must agree with."""

    @classmethod
    def of(cls, learner: Any, seed: int) -> Plan:
        """The plan of a learner whose settings have these names."""
        settings = asdict(learner)
        known = {name: settings[name] for name in cls.__dataclass_fields__ if name in settings}
        return cls(**known, seed=seed, settings={"learner": type(learner).__name__, **settings, "seed": seed})


@dataclass(frozen=True)
class Step:
    """Record of one step."""

    step: int
    of: int
    loss: float
    """Mean over the batch's answer tokens."""
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    more: Mapping[str, float] = field(default_factory=dict)
    """What else a learner tells of the step, such as the mean reward."""


def learning_rate_at(step: int, of: int, plan: Plan) -> float:
    """Linear warm-up, then a cosine down to `final_share`."""
    warmup = max(1, round(plan.warmup_share * of))
    if step < warmup:
        return plan.learning_rate * (step + 1) / warmup
    along = (step - warmup) / max(1, of - warmup)
    return plan.learning_rate * (plan.final_share + (1 - plan.final_share) * 0.5 * (1 + math.cos(math.pi * along)))


def steps_of(lessons: int, rows: int, passes: int) -> int:
    """Steps in which each lesson is seen `passes` times."""
    return math.ceil(lessons / rows) * passes


def turns(lessons: Sequence[Lesson], plan: Plan, first: int = 0) -> Iterator[tuple[int, int, list[Lesson]]]:
    """(step from 0, steps in all, the lessons whose turn it is) from step `first` on, by seed."""
    per_pass = steps_of(len(lessons), plan.rows, 1)
    for number in range(first // max(1, per_pass), plan.passes):
        for place, group in enumerate(grouped(lessons, plan.rows, plan.seed + number)):
            step = number * per_pass + place
            if step >= first:
                yield step, per_pass * plan.passes, group


def descend(
    pupil: Pupil,
    lessons: Sequence[Lesson],
    plan: Plan,
    loss_of: Callable[[Batch], torch.Tensor],
    checkpoint: Path | None = None,
    every: int = 0,
    draw: Draw | None = None,
    told: Callable[[], Mapping[str, float]] = dict,
) -> Iterator[Step]:
    """Yields a record after each step. With a `checkpoint` that exists it goes on where that was saved.

    `loss_of` gives the mean over a batch's answer tokens; `told` is asked for the record's `more` after each step.
    A batch that does not fit in memory is halved and its gradients are added up. Raises UserError where the loss is
    no longer finite or goes up for good, the last checkpoint stays; and where the checkpoint has other settings.
    """
    if not lessons:
        raise UserError("there is nothing to learn from", "see prototype/pool.jsonl for what was dropped")
    weights, counts = list(pupil.model.parameters()), counts_of(pupil.model)
    optimiser = Optimiser(weights, plan.learning_rate, plan.weight_decay, plan.clip, plan.seed, counts)
    identity = {**plan.settings, "lessons": hash_of([lesson.ids for lesson in lessons])}
    first = optimiser.restore(checkpoint, identity) if checkpoint and checkpoint.exists() else 0
    worker = _Worker(pupil, optimiser, loss_of, plan.seed)
    watch = _Watch(checkpoint)
    pupil.model.train()
    for step, total, group in turns(lessons, plan, first):
        began = time.perf_counter()
        rate = learning_rate_at(step, total, plan)
        rows = list(group if draw is None else draw(group, step))
        loss, norm = 0.0, 0.0
        for update in range(plan.updates if rows else 0):
            loss = worker.backward(rows, step, update)
            norm = optimiser.step(rate)
            watch.judge(loss, norm, step, total)
        tokens = sum(len(row.ids) for row in rows)
        yield Step(step + 1, total, loss, rate, norm, tokens, time.perf_counter() - began, dict(told()))
        # Saved when the caller comes back: what it does after a step (an exam) is then never skipped by a resume.
        if checkpoint and every and (step + 1) % every == 0 and step + 1 < total:
            optimiser.save(checkpoint, step + 1, identity)
    pupil.model.eval()


class _Worker:
    """Gradients of a batch, in as many parts as memory asks for, and by as many processes as there are."""

    def __init__(self, pupil: Pupil, optimiser: Optimiser, loss_of: Callable[[Batch], torch.Tensor], seed: int) -> None:
        self.pupil = pupil
        self.seed = seed
        self.drops = _drops(pupil.model)
        self.optimiser = optimiser
        self.loss_of = loss_of
        self.at_once = 0  # rows; 0 is all
        self.sharded = is_sharded(pupil.model)

    def backward(self, rows: Sequence[Lesson], step: int, update: int = 0) -> float:
        """Leaves the gradient of the mean loss in the weights; gives it. What is dropped is drawn by the step."""
        own = share_of(rows)
        positions = _positions(rows)
        if self.drops:
            with _drawn_by(f"{self.seed} {step} {update}", self.pupil.device):
                return self._summed(rows, own, positions)
        return self._summed(rows, own, positions)

    def _summed(self, rows: Sequence[Lesson], own: Sequence[Lesson], positions: int) -> float:
        if self.sharded:
            # All processes gather each block together: none may go in more parts than others, and one without a row
            # takes part all the same.
            loss = self._in_parts(own or rows[:1], len(rows), positions * bool(own))
        else:
            loss = self._as_it_fits(own, positions)
            sum_gradients(self.optimiser.live)
        return summed(loss)

    def _as_it_fits(self, rows: Sequence[Lesson], positions: int) -> float:
        while True:
            try:
                return self._in_parts(rows, self.at_once or len(rows), positions)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not _is_out_of_memory(error):
                    raise
                self.optimiser.forget()
                if (self.at_once or len(rows)) == 1:
                    longest = max(len(row.ids) for row in rows)
                    raise UserError(
                        f"a single row of {longest} tokens does not fit in memory",
                        "shorten longest_tokens, use an adapter, or take a smaller student",
                    ) from error
                self.at_once = (self.at_once or len(rows)) // 2
                self.pupil.note(
                    f"  {len(rows)} rows do not fit in memory: {self.at_once} at a time, gradients added up"
                )

    def _in_parts(self, rows: Sequence[Lesson], at_once: int, positions: int) -> float:
        """The rows' share of the mean over `positions` answer tokens; 0 of these and nothing counts."""
        whole = 0.0
        for start in range(0, len(rows), at_once or 1):
            batch = collate(rows[start : start + at_once], self.pupil.pad_id).to(self.pupil.device)
            share = batch.targets.numel() / positions if positions else 0.0
            loss = self.loss_of(batch) * share
            # Over shards the gradients are averaged, not added up.
            (loss * processes() if self.sharded else loss).backward()  # type: ignore[no-untyped-call]
            whole += loss.item()
        return whole


def _drops(model: torch.nn.Module) -> bool:
    """Whether a forward pass of this model in training draws random numbers."""
    dropout = torch.nn.modules.dropout._DropoutNd
    return any(
        module.p > 0 if isinstance(module, dropout) else bool(getattr(module, "attention_dropout", 0))
        for module in model.modules()
    )


@contextmanager
def _drawn_by(words: str, device: torch.device) -> Iterator[None]:
    """Torch's own generators, which dropout draws from and nobody can pass in, begin as `words` say; then go back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(random.Random(words).getrandbits(63))
        yield


def _positions(rows: Sequence[Lesson]) -> int:
    return sum(len(row.ids) - row.answer_start for row in rows)


class _Watch:
    """Stops a training that no longer learns."""

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        self.recent: deque[float] = deque(maxlen=_WINDOW)
        self.best = math.inf

    def judge(self, loss: float, norm: float, step: int, total: int) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._stop(f"the loss is {loss} and the gradient's norm {norm} at step {step + 1} of {total}")
        self.recent.append(loss)
        if len(self.recent) < _WINDOW:
            return
        mean = sum(self.recent) / _WINDOW
        if mean > self.best + _DIVERGED:
            self._stop(f"the loss went up from {self.best:.2f} to {mean:.2f} at step {step + 1} of {total}")
        self.best = min(self.best, mean)

    def _stop(self, problem: str) -> None:
        kept = self.checkpoint is not None and self.checkpoint.exists()
        raise UserError(problem, "lower the learning rate" + ("; the last good checkpoint stays" if kept else ""))


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
