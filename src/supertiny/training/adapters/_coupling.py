"""An additive coupling of a vector's two halves: each half moves by what the other says, so it can be undone."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from supertiny.training.adapters._beside import uniform


class Coupling(torch.nn.Module):
    """(first, second) -> (first + f(second), second + g(first + f(second))) on the last axis; f and g zero at first."""

    def __init__(self, width: int, inner: int, generator: torch.Generator, like: torch.Tensor) -> None:
        super().__init__()
        self.halves = [width // 2, width - width // 2]
        first, second = self.halves
        self.first_down = torch.nn.Parameter(uniform((inner, second), generator, like))
        self.first_up = torch.nn.Parameter(like.new_zeros(first, inner))
        self.second_down = torch.nn.Parameter(uniform((inner, first), generator, like))
        self.second_up = torch.nn.Parameter(like.new_zeros(second, inner))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        first, second = torch.split(vectors, self.halves, dim=-1)
        first = first + _bottleneck(second, self.first_down, self.first_up)
        second = second + _bottleneck(first, self.second_down, self.second_up)
        return torch.cat((first, second), dim=-1)

    def undone(self, vectors: torch.Tensor) -> torch.Tensor:
        """What `forward` was given."""
        first, second = torch.split(vectors, self.halves, dim=-1)
        second = second - _bottleneck(first, self.second_down, self.second_up)
        first = first - _bottleneck(second, self.first_down, self.first_up)
        return torch.cat((first, second), dim=-1)


def _bottleneck(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.linear(F.silu(F.linear(x, down)), up)


class CoupledEmbedding(torch.nn.Module):
    """A frozen table of tokens whose vectors go through a coupling."""

    def __init__(self, frozen: torch.nn.Embedding, coupling: Coupling) -> None:
        super().__init__()
        self.frozen, self.coupling = frozen, coupling

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.coupling(self.frozen(ids))
        return vectors

    @property
    def weight(self) -> torch.Tensor:
        """(vocabulary, width): the table that merging gives."""
        table: torch.Tensor = self.coupling(self.frozen.weight)
        return table


class CoupledHead(torch.nn.Module):
    """A head that is tied to a coupled table: it compares with the coupled vectors."""

    table: CoupledEmbedding

    def __init__(self, frozen: Any, table: CoupledEmbedding) -> None:
        super().__init__()
        self.frozen = frozen
        object.__setattr__(self, "table", table)  # not registered: it belongs to the model, once

    @property
    def weight(self) -> torch.Tensor:
        """(vocabulary, width): the coupled table."""
        return self.table.weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.weight)
