"""Layers of our own beside frozen ones: how they are put into a model, and how they are merged into it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from supertiny.core.errors import UserError, nearest_word


class Beside(torch.nn.Module, ABC):
    """A frozen linear layer with something small learned beside it."""

    def __init__(self, frozen: torch.nn.Module) -> None:
        super().__init__()
        self.frozen = frozen

    @abstractmethod
    def change(self) -> torch.Tensor:
        """(out, in): what is learned, as a change of the frozen weight."""

    def merged(self) -> torch.nn.Linear:
        """The frozen layer itself, changed."""
        layer = self.frozen
        assert isinstance(layer, torch.nn.Linear)
        with torch.no_grad():
            layer.weight += self.change().to(layer.weight.dtype)
        return layer


class LowRank(Beside):
    """LoRA: alpha / rank * up @ down, `up` zero at the start. `like` is the frozen weight (out, in)."""

    def __init__(
        self,
        frozen: torch.nn.Module,
        like: torch.Tensor,
        rank: int,
        alpha: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(frozen)
        outputs, inputs = like.shape
        self.down = torch.nn.Parameter(uniform((rank, inputs), generator, like))
        self.up = torch.nn.Parameter(like.new_zeros(outputs, rank))
        self.scale = alpha / rank
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frozen: torch.Tensor = self.frozen(x)
        return frozen + self.scale * F.linear(F.linear(self.dropout(x), self.down), self.up)

    def change(self) -> torch.Tensor:
        return self.scale * (self.up @ self.down)


def uniform(shape: tuple[int, ...], generator: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    """Between -1 and 1 over the square root of the last size, as linear layers start; drawn in float32."""
    bound = 1 / math.sqrt(shape[-1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator).to(like)


def normal(shape: tuple[int, ...], spread: float, generator: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    """Gaussian numbers of that standard deviation, drawn in float32 so that every precision starts alike."""
    return (spread * torch.randn(shape, generator=generator)).to(like)


def linear_layers(model: Any, targets: Sequence[str] = ()) -> dict[str, torch.nn.Linear]:
    """Linear layers by path: those of these names, or all but the head. Raises UserError for names that are none."""
    head = model.get_output_embeddings()
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    known = {path.rpartition(".")[2] for path in found}
    for target in targets:
        if target not in known:
            raise UserError(f"the student has no linear layer {target!r}", nearest_word(target, known))
    return {path: layer for path, layer in found.items() if not targets or path.rpartition(".")[2] in targets}


def put(model: Any, path: str, module: torch.nn.Module) -> None:
    """Puts the module in the place of the one at that path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def put_beside(model: Any, targets: Sequence[str], make: Callable[[torch.nn.Linear], torch.nn.Module]) -> Any:
    """The model, frozen, with each linear layer in the place of what `make` gives for it."""
    model.requires_grad_(False)
    for path, layer in linear_layers(model, targets).items():
        put(model, path, make(layer))
    return model


def merged_beside(model: Any) -> Any:
    """The model with every layer that stands beside a frozen one merged into it, and all weights free to learn."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Beside):
            put(model, path, module.merged())
    return model.requires_grad_(True)
