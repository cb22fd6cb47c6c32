"""The loop of learners that move weights in a way of their own: order, schedule, records and checkpoints stay alike."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, written_whole
from supertiny.training.lessons import Lesson
from supertiny.training.loop import Draw, Plan, Step, _Watch, learning_rate_at, turns
from supertiny.training.optimiser import _compare
from supertiny.training.pupil import Pupil


class Mover(Protocol):
    """Moves the weights of a pupil, and can say where it stands."""

    def move(self, rows: Sequence[Lesson], rate: float, step: int) -> tuple[float, float]:
        """One step on these rows; gives the mean loss over their answer tokens and the gradient's norm."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a resume must have."""
        ...

    def take(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Goes back to what `tensors` gave after `step` steps. Raises KeyError or RuntimeError where it cannot."""
        ...


def stepped(
    pupil: Pupil,
    lessons: Sequence[Lesson],
    plan: Plan,
    mover: Mover,
    checkpoint: Path | None = None,
    every: int = 0,
    draw: Draw | None = None,
    told: Callable[[], Mapping[str, float]] = dict,
) -> Iterator[Step]:
    """Yields a record after each step, as training.loop.descend does; the mover stands in for its optimiser."""
    if not lessons:
        raise UserError("there is nothing to learn from", "see prototype/pool.jsonl for what was dropped")
    identity = {**plan.settings, "lessons": hash_of([lesson.ids for lesson in lessons])}
    first = _restored(checkpoint, mover, identity) if checkpoint and checkpoint.exists() else 0
    watch = _Watch(checkpoint)
    for step, total, group in turns(lessons, plan, first):
        began = time.perf_counter()
        rate = learning_rate_at(step, total, plan)
        rows = list(group if draw is None else draw(group, step))
        loss, norm = mover.move(rows, rate, step)
        watch.judge(loss, norm, step, total)
        tokens = sum(len(row.ids) for row in rows)
        due = checkpoint if every and (step + 1) % every == 0 and step + 1 < total else None
        with _saved(due, mover, step + 1, identity) if due else nullcontext():
            yield Step(step + 1, total, loss, rate, norm, tokens, time.perf_counter() - began, dict(told()))
    pupil.model.eval()


@contextmanager
def _saved(path: Path, mover: Mover, step: int, identity: Mapping[str, Any]) -> Iterator[None]:
    """Writes the mover's tensors, the step, and the settings that a resume must have, to one safetensors file.

    Written before the caller sees the step, since it may touch the weights; in place only when it comes back, so that
    what it does after a step is never skipped by a resume.
    """
    with written_whole(path) as beside:
        try:
            position = json.dumps({"step": step, "settings": identity}, default=str)
            save_file(mover.tensors(), beside, {"position": position})
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}", "free some disk space or check rights") from error
        yield


def _restored(path: Path, mover: Mover, identity: Mapping[str, Any]) -> int:
    """Reads what `_saved` wrote; gives the step to go on from. Raises UserError where it was made otherwise."""
    try:
        with safe_open(path, "pt") as file:
            position = json.loads((file.metadata() or {})["position"])
            _compare(path, position["settings"], json.loads(json.dumps(dict(identity), default=str)))
            step = int(position["step"])
            mover.take({name: file.get_tensor(name) for name in file.keys()}, step)  # noqa: SIM118
            return step
    except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no checkpoint of this training: {error}", "delete it to begin anew") from error
