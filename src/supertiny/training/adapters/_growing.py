"""Low-rank layers with a core between both sides whose ranks open up, block by block, where the core moves most."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from supertiny.training.adapters._beside import Beside, normal, uniform


class Grown(Beside):
    """alpha / rank * up @ core @ down on the ranks that are open; core zero at the start, the two sides random.

    Memory is laid out for twice the rank; a rank that is not open gets no gradient. Opening a block adds rows to the
    core's lower triangle and columns to its upper one, which start at zero: what is computed does not jump.
    """

    learned_buffers = ("open_ranks",)
    open_ranks: torch.Tensor

    def __init__(
        self, frozen: torch.nn.Linear, rank: int, alpha: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__(frozen)
        outputs, inputs = frozen.weight.shape
        self.block, self.most = max(1, rank // 2), 2 * rank
        self.down = torch.nn.Parameter(uniform((self.most, inputs), generator, frozen.weight))
        # Were `up` zero like `core`, every gradient would be zero for ever.
        self.up = torch.nn.Parameter(normal((outputs, self.most), 1 / math.sqrt(rank), generator, frozen.weight))
        self.core = torch.nn.Parameter(frozen.weight.new_zeros(self.most, self.most))
        self.register_buffer("open_ranks", torch.tensor(self.block))
        self.scale = alpha / rank
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = int(self.open_ranks)
        frozen: torch.Tensor = self.frozen(x)
        inner = F.linear(F.linear(self.dropout(x), self.down[:n]), self.core[:n, :n])
        return frozen + self.scale * F.linear(inner, self.up[:, :n])

    def change(self) -> torch.Tensor:
        n = int(self.open_ranks)
        return self.scale * (self.up[:, :n] @ self.core[:n, :n] @ self.down[:n])

    @property
    def importance(self) -> float:
        """Norm of the core per open block."""
        n = int(self.open_ranks)
        return float(self.core.detach()[:n, :n].float().norm()) * self.block / n


class Growth(torch.nn.Module):
    """Opens ranks while a model trains: called before each of its forward passes, as a hook.

    Every so many passes with gradients, the layers whose importance rose most get a block more, until the budget of
    `rank` per layer on average is open.
    """

    learned_buffers = ("passes", "before")
    passes: torch.Tensor
    before: torch.Tensor

    def __init__(self, layers: list[Grown], rank: int, every: int, share: float) -> None:
        super().__init__()
        self.layers = tuple(layers)  # a tuple: they belong to the model, not to this
        self.rank, self.every, self.share = rank, every, share
        self.register_buffer("passes", torch.tensor(0))
        self.register_buffer("before", torch.zeros(len(layers), dtype=torch.float64))

    def forward(self, model: Any, *_: Any) -> None:
        if model.training and torch.is_grad_enabled():
            self.passes += 1
            if int(self.passes) % self.every == 0:
                self._grow()

    def _grow(self) -> None:
        now = torch.tensor([layer.importance for layer in self.layers], dtype=torch.float64)
        rose = (now - self.before.cpu()).tolist()
        self.before.copy_(now)
        block = self.layers[0].block
        left = (self.rank * len(self.layers) - sum(int(layer.open_ranks) for layer in self.layers)) // block
        able = [i for i, layer in enumerate(self.layers) if int(layer.open_ranks) + block <= layer.most]
        able.sort(key=lambda i: (-rose[i], i))
        for i in able[: min(left, math.ceil(self.share * left))]:
            self.layers[i].open_ranks += block
