"""Weights moved along directions that nobody stores: each is drawn anew from its seed wherever it is needed.

A module computes with weights that stand elsewhere while it computes; the weights themselves stay where they are, so
that nothing has to be taken back. Beside the weights there is a copy of one block at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from supertiny.core.errors import UserError
from supertiny.training.learners._blocks import blocks_of

Mask = Literal["random", "small", "large"]
_CHUNK = 1 << 15  # weights whose noise is held at a time
_TINY = 1e-8
_DECAY = (0.9, 0.95)  # of Adam's moments

Elsewhere = Callable[[int], torch.Tensor | None]
"""(number of a parameter) -> the weights to compute with, or None for its own."""


@dataclass(frozen=True)
class Walk:
    """A direction that was tried, and what was found there."""

    step: int
    number: int
    """Which of the step's directions."""
    group: int
    """Which of the groups of weights was moved."""
    slope: float = 0.0
    """Change of the loss along the direction, per unit."""
    first: float = 1.0
    """Weight in the mean of the gradients."""
    second: float = 0.0
    """Weight in the mean of their squares."""


class Weights:
    """All weights of a model that may be changed, in groups that are moved one at a time."""

    def __init__(self, model: Any, groups: int, epsilon: float, sparsity: float, mask: Mask, seed: int) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise UserError("no weight of the student may be changed", "check the adapter")
        for parameter in self.parameters:
            parameter.data = parameter.data.contiguous()
        self.groups = _groups([p.numel() for p in self.parameters], groups)
        self.epsilon, self.sparsity, self.mask, self.seed = epsilon, sparsity, mask, seed
        self.scopes = _scopes(model, self.parameters)
        self.limits = [_limit(p, sparsity, mask) for p in self.parameters]
        self.generator = torch.Generator(device=self.parameters[0].device)
        self.throughout: list[int] = []  # parameters that no module which computes holds

    def beside(self, walk: Walk, scale: float) -> Elsewhere:
        """The weights `scale` times epsilon along a direction."""

        def moved(index: int) -> torch.Tensor | None:
            if self.groups[index] != walk.group:
                return None
            return self._filled(
                index, lambda flat, place: self._noise(walk, index, place, flat).mul_(scale * self.epsilon).add_(flat)
            )

        return moved

    def ahead(self, walks: Sequence[Walk], rate: float, step: int) -> Elsewhere:
        """The weights one step of `rate` down the slopes that were found, where `go` would lead."""

        def moved(index: int) -> torch.Tensor | None:
            return self._stepped(index, walks, rate, step) if self._concerns(index, walks) else None

        return moved

    @torch.no_grad()
    def go(self, walks: Sequence[Walk], rate: float, step: int) -> None:
        """Moves the weights there, in place. Rounding to bfloat16 is random, by the number of the step."""
        for index, parameter in enumerate(self.parameters):
            if self._concerns(index, walks):
                self._stepped(index, walks, rate, step, parameter.data)

    @contextmanager
    def at(self, elsewhere: Elsewhere) -> Iterator[None]:
        """While it lasts, each module computes with the weights that `elsewhere` gives. Bit for bit as before after."""
        away: dict[int, list[Any]] = {}  # own weights, and how many modules at work hold the parameter

        def leave(indices: Sequence[int]) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                for index in indices:
                    if index in away:
                        away[index][1] += 1
                    elif (moved := elsewhere(index)) is not None:
                        away[index] = [self.parameters[index].data, 1]
                        self.parameters[index].data = moved

            return hook

        def come_back(indices: Sequence[int]) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                for index in indices:
                    if index in away:
                        away[index][1] -= 1
                        if not away[index][1]:
                            self.parameters[index].data = away.pop(index)[0]

            return hook

        hooks = [module.register_forward_pre_hook(leave(indices)) for module, indices in self.scopes]
        hooks += [module.register_forward_hook(come_back(indices)) for module, indices in self.scopes]
        try:
            leave(self.throughout)()
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for index, (own, _) in away.items():
                self.parameters[index].data = own

    def look(self, compute: Callable[[], object]) -> None:
        """Finds out by one forward pass which weights are read from afar, as factors that an adapter's layers share.

        They stand elsewhere for the whole of a pass.
        """
        seen: set[int] = set()

        def here(index: int) -> None:
            seen.add(index)

        self.throughout = []
        with self.at(here):
            compute()
        self.throughout = [index for index in range(len(self.parameters)) if index not in seen]

    def _concerns(self, index: int, walks: Sequence[Walk]) -> bool:
        return any(walk.group == self.groups[index] for walk in walks)

    def _stepped(
        self, index: int, walks: Sequence[Walk], rate: float, step: int, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        dtype = self.parameters[index].dtype
        own = [walk for walk in walks if walk.group == self.groups[index]]

        def down(flat: torch.Tensor, place: int) -> torch.Tensor:
            mean = torch.zeros_like(flat)
            square = torch.zeros_like(flat) if any(walk.second for walk in own) else None
            for walk in own:
                gradient = self._walked(walk, index, place, flat, dtype).mul_(walk.slope)
                mean.add_(gradient, alpha=walk.first)
                if square is not None:
                    square.addcmul_(gradient, gradient, value=walk.second)
            if square is not None:
                mean.div_(square.sqrt_().add_(_TINY))
            moved = flat.sub(mean, alpha=rate)
            return self._rounded(moved, f"round.{step}.{index}.{place}") if dtype == torch.bfloat16 else moved

        return self._filled(index, down, into)

    def _filled(
        self,
        index: int,
        formula: Callable[[torch.Tensor, int], torch.Tensor],
        into: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the formula gives for the weights, a chunk at a time, so that little is in float32 at once."""
        own = self.parameters[index].data
        into = torch.empty_like(own) if into is None else into
        chunks = zip(torch.split(own.view(-1), _CHUNK), torch.split(into.view(-1), _CHUNK), strict=True)
        for place, (old, new) in enumerate(chunks):
            new.copy_(formula(old.float(), place))
        return into

    def _walked(self, walk: Walk, index: int, place: int, flat: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The direction that was really walked: what low precision rounded away was not felt, and must not be moved."""
        far = self._noise(walk, index, place, flat).mul_(self.epsilon)
        return ((flat + far).to(dtype).float() - (flat - far).to(dtype).float()).div_(2 * self.epsilon)

    def _noise(self, walk: Walk, index: int, place: int, flat: torch.Tensor) -> torch.Tensor:
        source = self._drawn(f"{walk.step}.{walk.number}.{index}.{place}")
        noise = torch.randn(flat.shape, generator=source, device=flat.device)
        if not self.sparsity:
            return noise
        limit = self.limits[index]
        if self.mask == "random" or not limit:
            source = self._drawn(f"mask.{index}.{place}")
            chosen = torch.rand(flat.shape, generator=source, device=flat.device) >= self.sparsity
        else:
            chosen = flat.abs() <= limit if self.mask == "small" else flat.abs() > limit
        return noise * chosen

    def _rounded(self, exact: torch.Tensor, name: str) -> torch.Tensor:
        """Up or down to bfloat16 by chance, right on average: steps below half a unit are not lost."""
        bits = exact.view(torch.int32)
        below = torch.randint(
            0, 1 << 16, bits.shape, generator=self._drawn(name), device=bits.device, dtype=torch.int32
        )
        return ((bits + below) & -(1 << 16)).view(torch.float32)

    def _drawn(self, name: str) -> torch.Generator:
        number = int.from_bytes(hashlib.blake2b(f"{self.seed}.{name}".encode(), digest_size=4).digest(), "big")
        return self.generator.manual_seed(number)


class Slopes:
    """The walks of the last steps: with the seed, all that Adam's two means need."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.walks: list[Walk] = []

    def after(self, walks: Sequence[Walk], step: int) -> list[Walk]:
        """These walks and the older ones of their groups, weighted so that those of a group sum to one."""
        self.walks = [walk for walk in [*self.walks, *walks] if walk.step > step - self.steps]
        groups = {walk.group for walk in walks}
        return [self._weighted(walk, step) for walk in self.walks if walk.group in groups]

    def _weighted(self, walk: Walk, step: int) -> Walk:
        kin = [other for other in self.walks if other.group == walk.group]
        visits = sorted({other.step for other in kin}, reverse=True)  # a group may be left out of steps
        first, second = (
            decay ** visits.index(walk.step) / sum(decay ** visits.index(other.step) for other in kin)
            for decay in _DECAY
        )
        return replace(walk, first=first, second=second)

    def to_tensor(self) -> torch.Tensor:
        """(walks, 4) float64."""
        rows = [(walk.step, walk.number, walk.group, walk.slope) for walk in self.walks]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)

    def take(self, rows: torch.Tensor) -> None:
        self.walks = [Walk(int(row[0]), int(row[1]), int(row[2]), row[3]) for row in rows.tolist()]


def _groups(sizes: Sequence[int], groups: int) -> list[int]:
    """The group of each parameter: neighbours together, groups of about equal size, none empty."""
    if groups > len(sizes):
        raise UserError(f"{groups} groups of {len(sizes)} weight matrices", "lower `blocks`")
    found, before, number = [], 0, 0
    for place, size in enumerate(sizes):
        full = before >= (number + 1) * sum(sizes) / groups
        if place and number + 1 < groups and (full or len(sizes) - place < groups - number):
            number += 1
        found.append(number)
        before += size
    return found


def _scopes(model: Any, parameters: Sequence[torch.nn.Parameter]) -> list[tuple[torch.nn.Module, list[int]]]:
    """(module, parameters that stand elsewhere while it computes): whole blocks, and beside them whoever owns some.

    Whole blocks, since adapters read weights of modules within them that are not called.
    """
    number = {id(parameter): index for index, parameter in enumerate(parameters)}
    blocks = blocks_of(model)
    within = {id(module) for block in blocks for module in block.modules()}
    scopes = [(block, [number[id(p)] for p in block.parameters() if id(p) in number]) for block in blocks]
    for module in model.modules():
        if id(module) not in within:
            own = [number[id(p)] for p in module.parameters(recurse=False) if id(p) in number]
            scopes.append((module, own))
    return [(module, indices) for module, indices in scopes if indices]


def _limit(parameter: torch.nn.Parameter, sparsity: float, mask: Mask) -> float:
    """The magnitude that parts the weights to be moved from the others; 0 where that is left to chance."""
    if mask == "random" or not sparsity:
        return 0.0
    rank = round((1 - sparsity if mask == "small" else sparsity) * parameter.numel())
    return float(parameter.detach().abs().flatten().kthvalue(min(max(rank, 1), parameter.numel())).values)
