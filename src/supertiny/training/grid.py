"""Training on the grid of the type that will be exported, so that rounding to it loses nothing any more.

Paper: Jacob et al., Quantization and Training of Neural Networks, 2017, arXiv:1712.05877 (training with rounded weights
and a straight-through gradient); the grid is llama.cpp's q4_0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import torch
from torch.nn.utils import parametrize

BLOCK = 32  # weights that share a scale in llama.cpp's small types


def round_q4_0(weight: torch.Tensor) -> torch.Tensor:
    """The nearest matrix that q4_0 can store: per 32 weights of a row one scale and integers from -8 to 7.

    The scale is the weight of largest magnitude over -8, so that one stands exactly on the grid. Shape and dtype stay.
    """
    blocks = weight.detach().float().reshape(-1, BLOCK)
    high, low = blocks.amax(dim=1, keepdim=True), blocks.amin(dim=1, keepdim=True)
    exact = torch.where(high > -low, high, low) / -8
    tied = ((high == -low) & (high > 0)).squeeze(1)  # the first of both counts; seldom, so looked for only there
    exact[tied] = blocks[tied].gather(1, blocks[tied].abs().argmax(dim=1, keepdim=True)) / -8
    inverse = exact.reciprocal().masked_fill_(exact == 0, 0.0)
    steps = (blocks * inverse).add_(8.5).floor_().clamp_(0, 15).sub_(8)
    scale = exact.half().float()  # what is stored; the steps are counted before it is rounded, as llama.cpp does
    return steps.mul_(scale).reshape(weight.shape).to(weight.dtype)


class _StraightThrough(torch.autograd.Function):
    """Forward sees the rounded weights, the gradient reaches the ones behind them."""

    @staticmethod
    def forward(context: Any, weight: torch.Tensor) -> torch.Tensor:
        return round_q4_0(weight)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class _OnGrid(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        rounded: torch.Tensor = _StraightThrough.apply(weight)  # type: ignore[no-untyped-call]
        return rounded


def settled(model: Any, type: str) -> Any:
    """A float32 copy on the grid, also of a model within `on_grid`."""
    # Not a deep copy: parametrised layers share their class with their copies, and undoing one undoes both.
    whole = model.__class__(model.config)
    state = {name.replace("parametrizations.weight.original", "weight"): w for name, w in model.state_dict().items()}
    whole.load_state_dict(state)
    whole.to(model.device)
    settle(whole.float(), type)
    return whole


def settle(model: Any, type: str) -> None:
    """Puts a float32 model's matrices where the file will have them: q4_0, and q8_0 for embedding and output.

    What is exported is then the student itself, weight for weight. Does nothing for types other than q4_0.
    """
    if type != "q4_0":
        return
    outer = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        for weight in {id(layer.weight): layer.weight for layer in outer if layer is not None}.values():
            weight.copy_(_round_q8_0(weight))
        for layer in _layers(model):
            layer.weight.copy_(round_q4_0(layer.weight))


def _round_q8_0(weight: torch.Tensor) -> torch.Tensor:
    if weight.shape[-1] % BLOCK:
        return weight
    kind = gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quants.quantize(weight.detach().float().cpu().numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())


def _layers(model: Any) -> list[torch.nn.Linear]:
    """Matrices that q4_0 rounds."""
    outer = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    linear = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and id(layer) not in outer]
    return [layer for layer in linear if layer.in_features % BLOCK == 0]


@contextmanager
def on_grid(model: Any, type: str) -> Iterator[None]:
    """Within the block every matrix that q4_0 would round is seen rounded; at its end it stays on the grid.

    Embedding and output are exported higher and left alone, as are all types but q4_0: finer ones lose next to nothing.
    """
    layers = _layers(model) if type == "q4_0" else []
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _OnGrid())
    try:
        yield
    finally:
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
