"""Reshapers, pruners and quantizers over all of a model; and zeros that stay zeros while it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils import parametrize

from supertiny.compress.inputs import Inputs
from supertiny.compress.layers import blocks_of, change_matrices, matrices_of
from supertiny.compress.reshapers._task_loss import mean_loss, with_answers
from supertiny.compress.steps import Step
from supertiny.core.errors import UserError, nearest_word
from supertiny.core.progress import Progress
from supertiny.training.lessons import Batch

_LOSS_ROWS = 32  # of the calibration, on which a pruner asks what a matrix does to the loss


def all_matrices(model: Any) -> dict[str, torch.nn.Linear]:
    """The matrices of all blocks by name. Raises UserError for an unknown architecture and quantized layers."""
    places = range(len(blocks_of(model)))
    return {name: layer for place in places for name, layer in matrices_of(model, place).items()}


def reshaped(method: Any, model: Any, calibration: Sequence[Batch], progress: Progress, title: str) -> Any:
    """The model that a reshaper without a tokenizer makes; one that takes long shows how far it is."""
    if not getattr(method, "reports", False):
        return method.reshape(model, calibration)
    with progress.share(title) as advance:
        return method.reshape(model, calibration, advance=advance)


def change_by(
    step: Step,
    model: Any,
    calibration: Sequence[Batch],
    seed: int,
    pruners: Sequence[Step] = (),
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Lets a pruner or quantizer change every matrix that it does not skip, in place.

    Methods that need calibration see the inputs as the blocks before, changed, pass them on; one pass over the rows.
    A quantizer is told where one of the `pruners` before made zeros. Raises UserError where `skip` fits no matrix, and
    what the method raises.
    """
    names = all_matrices(model)
    for pattern in step.skip:
        if not any(Step(step.family, None, skip=(pattern,)).skips(name) for name in names):
            raise UserError(f"compress.steps: skip: no matrix is called {pattern!r}", nearest_word(pattern, names))
    shares = _sparsities(step, model, calibration, seed)

    def change(name: str, weight: torch.Tensor, inputs: Inputs | None) -> torch.Tensor:
        if step.skips(name):
            return weight
        if step.family == "pruners":
            pruned: torch.Tensor = step.method.prune(weight, inputs, shares[name])
            return pruned
        if inputs is not None and not all(pruner.skips(name) for pruner in pruners):
            inputs = inputs.of_pruned()
        restored: torch.Tensor = step.method.quantize(weight, inputs).restored()
        return restored

    if "calibration" in step.needs:
        change_matrices(model, calibration, change, tick=tick)
        return
    for done, (name, layer) in enumerate(names.items(), 1):
        with torch.no_grad():
            layer.weight.copy_(change(name, layer.weight.detach(), None))
        tick(done, len(names))


def _sparsities(step: Step, model: Any, calibration: Sequence[Batch], seed: int) -> dict[str, float]:
    """The share of zeros of each matrix: the same, unless the pruner gives each its own."""
    layers = {name: layer for name, layer in all_matrices(model).items() if not step.skips(name)}
    if step.family != "pruners" or not hasattr(step.method, "sparsities"):
        return dict.fromkeys(layers, step.sparsity)
    batches = _middle(with_answers(calibration, "ecoflap", model))
    weights = {name: layer.weight for name, layer in layers.items()}
    scores = step.method.scores(weights, lambda: mean_loss(model, batches), seed)
    sizes = {name: weight.numel() for name, weight in weights.items()}
    shares: dict[str, float] = step.method.sparsities(scores, sizes, step.sparsity)
    return shares


def _middle(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Of batches in the order of their length those in the middle: the shortest rows are not what a task asks."""
    count = max(1, _LOSS_ROWS // max(1, len(batches[0].ids)))
    first = max(0, len(batches) - count) // 2
    return batches[first : first + count]


@contextmanager
def held_zeros(model: Any, hold: bool = True) -> Iterator[None]:
    """Within it the zeros of the blocks' matrices stay zeros, whatever the rest learns."""
    layers = [layer for layer in all_matrices(model).values() if bool((layer.weight == 0).any())] if hold else []
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _Masked(layer.weight.detach() != 0))
    try:
        yield
    finally:
        for layer in layers:
            # Training on a grid within takes all parametrizations off when it ends, and leaves the zeros in the weight.
            if parametrize.is_parametrized(layer, "weight"):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


class _Masked(torch.nn.Module):
    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = torch.nn.Buffer(mask, persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask
