"""AdamW on float32 masters, its checkpoint in one safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from supertiny.core.errors import UserError
from supertiny.core.files import written_whole
from supertiny.training.several import gathered, is_first, local, shared_like, squares_summed, wait_for_all

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_AT_ONCE = 1 << 24  # weights whose gradients stand in float32 at a time: 64 MiB
_HALF_UNIT = 1 << 15  # of bfloat16's last place, counted in those of float32


def dithered(weight: torch.Tensor, seed: int) -> torch.Tensor:
    """A float32 copy drawn evenly from all numbers that round to the bfloat16 weight; zeros stay.

    Weights read from a bfloat16 file stand in the middle of their rounding interval: at a small learning rate none
    would leave it for many steps, and the live model would not move at all. From a random place a share of them, just
    as large as the step is, moves at once.
    """
    master = weight.detach().float().clone()
    part = local(master)
    generator = torch.Generator(device=part.device).manual_seed(seed)
    whole = torch.randint(
        1 - _HALF_UNIT, _HALF_UNIT, part.shape, dtype=torch.int32, device=part.device, generator=generator
    )
    # Of one sign, floats are ordered as their bits are: adding to the bits moves along the line, over powers of 2 too.
    whole.masked_fill_((part == 0) | ~part.isfinite(), 0)
    part.view(torch.int32).add_(whole)
    return master


class Optimiser:
    """AdamW on float32 master weights, whatever the precision of the model.

    Bfloat16 has 8 bits of mantissa: small updates would be lost without a master copy, which begins `dithered` by
    `seed`. Float32 weights are their own masters.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        learning_rate: float,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        seed: int = 0,
        counts: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """`counts` are tensors that training changes beside the weights, by name; a checkpoint has them too."""
        self.counts = counts or {}
        self.live: list[torch.Tensor] = [p for p in parameters if p.requires_grad]
        if not self.live:
            raise UserError("no weight of the student may be changed", "check the adapter")
        self.masters = [_master(live, seed + place) for place, live in enumerate(self.live)]
        self.adam = torch.optim.AdamW(
            self.masters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True
        )
        self.clip = clip

    def step(self, learning_rate: float) -> float:
        """Applies the gradients of the live weights and clears them; gives their norm before clipping."""
        norm = math.sqrt(squares_summed([live.grad for live in self.live if live.grad is not None]))
        if not math.isfinite(norm):
            self.forget()
            return norm
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        smaller = min(1.0, self.clip / (norm + 1e-6))
        for places in self._portions():
            self._apply(places, smaller)
        return norm

    def _portions(self) -> list[list[int]]:
        """Places of weights that are stepped together, so that float32 gradients of all never stand at once."""
        portions: list[list[int]] = [[]]
        filled = 0
        for place, live in enumerate(self.live):
            if portions[-1] and filled + live.numel() > _AT_ONCE:
                portions.append([])
                filled = 0
            portions[-1].append(place)
            filled += live.numel()
        return portions

    def _apply(self, places: Sequence[int], smaller: float) -> None:
        masters, live = [self.masters[place] for place in places], [self.live[place] for place in places]
        for master, weight in zip(masters, live, strict=True):
            master.grad = torch.zeros_like(master) if weight.grad is None else weight.grad.float()
            weight.grad = None
            if smaller < 1.0:
                master.grad.mul_(smaller)
        self.adam.step()  # passes over all that have no gradient now
        for master, weight in zip(masters, live, strict=True):
            master.grad = None
            if weight.dtype != master.dtype:
                weight.data.copy_(master)

    def forget(self) -> None:
        """Drops the gradients of a step that did not come to its end."""
        for live in self.live:
            live.grad = None

    def save(self, path: Path, step: int, identity: Mapping[str, Any]) -> None:
        """One safetensors file: master weights, both moments, the step, and the settings that a resume must have."""
        tensors = {f"master.{i}": gathered(tensor) for i, tensor in enumerate(self.masters)}
        for i, master in enumerate(self.masters):
            state = self.adam.state.get(master, {})
            tensors |= {f"{name}.{i}": gathered(state[name]) for name in _MOMENTS if name in state}
        tensors |= {f"count.{name}": tensor for name, tensor in self.counts.items()}
        if is_first():
            position = {"position": json.dumps({"step": step, "settings": identity}, default=str)}
            with written_whole(path) as beside:
                try:
                    save_file(tensors, beside, position)
                except SafetensorError as error:
                    raise UserError(f"cannot write {path}: {error}", "free some disk space or check rights") from error
        wait_for_all()

    def restore(self, path: Path, identity: Mapping[str, Any]) -> int:
        """Reads what `save` wrote; gives the step to go on from. Raises UserError where it was made otherwise."""
        try:
            with safe_open(path, "pt") as file:
                position = json.loads((file.metadata() or {})["position"])
                _compare(path, position["settings"], json.loads(json.dumps(dict(identity), default=str)))
                names = set(file.keys())
                for i, (master, live) in enumerate(zip(self.masters, self.live, strict=True)):
                    master.copy_(shared_like(file.get_tensor(f"master.{i}"), master))
                    live.data.copy_(master)
                    if f"step.{i}" in names:
                        known = {name: file.get_tensor(f"{name}.{i}") for name in _MOMENTS}
                        self.adam.state[master] = {name: shared_like(value, master) for name, value in known.items()}
                for name, tensor in self.counts.items():
                    tensor.copy_(file.get_tensor(f"count.{name}"))
                return int(position["step"])
        except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is no checkpoint of this training: {error}", "delete it to begin anew") from error


def counts_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What modules of an adapter count while they learn, such as the ranks that are open: their `learned_buffers`."""
    return {
        f"{path}.{name}": getattr(module, name)
        for path, module in model.named_modules()
        for name in getattr(module, "learned_buffers", ())
    }


def _compare(path: Path, made: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    different = [name for name in {**made, **now} if made.get(name) != now.get(name)]
    if different:
        told = ", ".join(f"{name} {made.get(name)!r} (now {now.get(name)!r})" for name in different)
        raise UserError(f"{path} was made with {told}", "take the old settings to go on, or delete it to begin anew")


def _master(live: torch.Tensor, seed: int) -> torch.Tensor:
    if live.dtype == torch.float32:
        return live.detach()
    return dithered(live, seed) if live.dtype == torch.bfloat16 else live.detach().float()
