"""Gradient descent, once: master weights, clipping, schedule, checkpoints. A learner brings its loss."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from supertiny.core.errors import UserError
from supertiny.core.files import written_whole
from supertiny.training.lessons import Batch, Lesson, batches
from supertiny.training.pupil import Pupil


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


class Optimiser:
    """AdamW on float32 master weights, whatever the precision of the model.

    Bfloat16 has 8 bits of mantissa: small updates would be lost without a master copy.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], plan: Plan) -> None:
        self.live: list[torch.Tensor] = [p for p in parameters if p.requires_grad]
        self.masters = [p.detach().float().clone() for p in self.live]
        self.adam = torch.optim.AdamW(
            self.masters, lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=plan.weight_decay, fused=True
        )
        self.clip = plan.clip

    def step(self, learning_rate: float) -> float:
        """Applies the gradients of the live weights and clears them; gives their norm before clipping."""
        for master, live in zip(self.masters, self.live, strict=True):
            master.grad = live.grad.float() if live.grad is not None else torch.zeros_like(master)
            live.grad = None
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters, self.clip))
        if not math.isfinite(norm):
            return norm
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.step()
        with torch.no_grad():
            torch._foreach_copy_(self.live, self.masters)
        for master in self.masters:
            master.grad = None
        return norm

    def save(self, path: Path, step: int) -> None:
        """One safetensors file: master weights, both moments, the step."""
        tensors = {f"master.{i}": tensor for i, tensor in enumerate(self.masters)}
        for i, master in enumerate(self.masters):
            state = self.adam.state.get(master, {})
            for name in ("exp_avg", "exp_avg_sq", "step"):
                if name in state:
                    tensors[f"{name}.{i}"] = state[name]
        with written_whole(path) as beside:
            try:
                save_file(tensors, beside, {"position": json.dumps({"step": step})})
            except SafetensorError as error:
                raise UserError(f"cannot write {path}: {error}", "free some disk space or check rights") from error

    def restore(self, path: Path) -> int:
        """Reads what `save` wrote; gives the step to go on from."""
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            for i, (master, live) in enumerate(zip(self.masters, self.live, strict=True)):
                master.copy_(file.get_tensor(f"master.{i}"))
                live.data.copy_(master)
                if f"step.{i}" in names:
                    self.adam.state[master] = {
                        name: file.get_tensor(f"{name}.{i}") for name in ("exp_avg", "exp_avg_sq", "step")
                    }
            return int(json.loads(file.metadata()["position"])["step"])


def learning_rate_at(step: int, of: int, plan: Plan) -> float:
    """Linear warm-up, then a cosine down to `final_share`."""
    warmup = max(1, round(plan.warmup_share * of))
    if step < warmup:
        return plan.learning_rate * (step + 1) / warmup
    along = (step - warmup) / max(1, of - warmup)
    return plan.learning_rate * (plan.final_share + (1 - plan.final_share) * 0.5 * (1 + math.cos(math.pi * along)))


def descend(
    pupil: Pupil,
    lessons: Sequence[Lesson],
    plan: Plan,
    loss_of: Callable[[Batch], torch.Tensor],
    checkpoint: Path | None = None,
    every: int = 0,
) -> Iterator[Step]:
    """Yields a record after each step. With a `checkpoint` that exists it goes on where that was saved.

    Raises UserError where the loss is no longer finite; the last checkpoint stays.
    """
    optimiser = Optimiser(list(pupil.model.parameters()), plan)
    pad = _pad_id(pupil.tokenizer)
    per_pass = math.ceil(len(lessons) / plan.rows)
    total = per_pass * plan.passes
    first = optimiser.restore(checkpoint) if checkpoint and checkpoint.exists() else 0
    pupil.model.train()
    for number in range(first // per_pass, plan.passes):
        for place, batch in enumerate(batches(lessons, plan.rows, plan.seed + number, pad)):
            step = number * per_pass + place
            if step < first:
                continue
            began = time.perf_counter()
            loss = loss_of(_on(batch, pupil.device))
            loss.backward()  # type: ignore[no-untyped-call]
            rate = learning_rate_at(step, total, plan)
            norm = optimiser.step(rate)
            if not (math.isfinite(loss.item()) and math.isfinite(norm)):
                raise UserError(f"the loss is {loss.item()} at step {step + 1} of {total}", "lower the learning rate")
            yield Step(step + 1, total, loss.item(), rate, norm, batch.tokens, time.perf_counter() - began)
            # Saved when the caller comes back: what it does after a step (an exam) is then never skipped by a resume.
            if checkpoint and every and (step + 1) % every == 0 and step + 1 < total:
                optimiser.save(checkpoint, step + 1)
    pupil.model.eval()


def _on(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return Batch(*(getattr(batch, name).to(device) for name in ("ids", "mask", "wanted", "targets")))


def _pad_id(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
