"""One small tensor and two thin matrices are shared by all layers; each layer owns a vector that picks its change.

Paper: PETAL, mode approximation, 2023, arXiv:2312.12458.
Use when: adapters must be tiny: a layer more costs as many numbers as the rank.
Differs from the paper: the text part alone, on every linear layer; layers share a thin matrix per width, not one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.nn import functional as F

from supertiny.training.adapters._beside import Beside, linear_layers, merged_beside, normal, put, uniform


class _Modes(torch.nn.Module):
    """What all layers share: a way in and a way out per width, and the core (rank, rank, rank).

    The ways out are zero at the start, so that a fresh adapter changes nothing.
    """

    def __init__(self, layers: list[torch.nn.Linear], rank: int, generator: torch.Generator) -> None:
        super().__init__()
        like = layers[0].weight
        self.into, self.out = torch.nn.ParameterDict(), torch.nn.ParameterDict()
        for width in sorted({layer.in_features for layer in layers}):
            self.into[str(width)] = torch.nn.Parameter(uniform((rank, width), generator, like))
        for width in sorted({layer.out_features for layer in layers}):
            self.out[str(width)] = torch.nn.Parameter(like.new_zeros(width, rank))
        # With vectors of unit spread, the mix of a layer then keeps the size of what flows through it.
        self.core = torch.nn.Parameter(normal((rank, rank, rank), 1 / rank, generator, like))


class _Picked(Beside):
    """scale * out @ (core x vector) @ into, where only the vector is the layer's own."""

    shared: _Modes

    def __init__(
        self, frozen: torch.nn.Linear, shared: _Modes, scale: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__(frozen)
        object.__setattr__(self, "shared", shared)  # not registered: it belongs to the model, once
        rank = shared.core.shape[0]
        self.vector = torch.nn.Parameter(normal((rank,), 1.0, generator, frozen.weight))
        self.into, self.out, self.scale = str(frozen.in_features), str(frozen.out_features), scale
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frozen: torch.Tensor = self.frozen(x)
        inner = self.dropout(F.linear(x, self.shared.into[self.into]))
        return frozen + self.scale * F.linear(F.linear(inner, self._mix()), self.shared.out[self.out])

    def change(self) -> torch.Tensor:
        change: torch.Tensor = self.shared.out[self.out] @ self._mix() @ self.shared.into[self.into]
        return self.scale * change

    def _mix(self) -> torch.Tensor:
        mix: torch.Tensor = self.shared.core @ self.vector
        return mix


@dataclass(frozen=True)
class ModeApproximation:
    """alpha / rank * V (C x p) U, with U, V and C shared and V zero at the start."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Size of the core in each direction."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The change is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inner numbers that is dropped."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that are adapted; none is all but the head."""

    def wrap(self, model: Any, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        layers = linear_layers(model, self.targets)
        model.requires_grad_(False)
        shared = _Modes(list(layers.values()), self.rank, generator)
        for path, layer in layers.items():
            put(model, path, _Picked(layer, shared, self.alpha / self.rank, self.dropout, generator))
        model.modes = shared
        return model

    def merge(self, model: Any) -> Any:
        merged_beside(model)
        del model.modes
        return model
