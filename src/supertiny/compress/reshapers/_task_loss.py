"""What a model loses on the answers of the calibration batches, whole or with parts of it switched off."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from supertiny.compress.reshapers._cutting import Kind
from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch


def with_answers(calibration: Sequence[Batch], method: str, model: Any) -> list[Batch]:
    """The batches that have answer places, on the model's device. Raises UserError where there are none."""
    found = [batch.to(model.device) for batch in calibration if bool(batch.wanted.any())]
    if not found:
        raise UserError(f"{method} has no calibration rows with answers", "see prototype/train.jsonl")
    return found


Advance = Callable[[float, float], None]
"""Is told (done, of) while a method works, in whatever it counts."""


def unheard(done: float, of: float) -> None:
    """For callers that do not want to know."""


def part_of(advance: Advance, start: float, end: float) -> Advance:
    """Of work that goes from one share of the whole to another."""
    return lambda done, of: advance(start + (end - start) * done / of, 1.0)


def drawn(batches: Sequence[Batch], steps: int, seed: int, advance: Advance = unheard) -> Iterator[Batch]:
    """`steps` batches: all of them in random order, again and again."""
    generator, left = random.Random(seed), list[Batch]()
    for step in range(steps):
        left = left or generator.sample(list(batches), len(batches))
        yield left.pop()
        advance(step + 1, steps)


def answer_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Float32 logits (positions, vocabulary) at the answer places."""
    states = model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)[0]
    logits: torch.Tensor = model.get_output_embeddings()(states[batch.wanted])
    return logits.float()


def answer_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of a batch's answer tokens, in nats."""
    return torch.nn.functional.cross_entropy(answer_logits(model, batch), batch.targets)


@torch.inference_mode()
def mean_loss(model: Any, batches: Sequence[Batch]) -> float:
    """Mean cross-entropy over all answer tokens, in nats."""
    total = sum(float(answer_loss(model, batch)) * len(batch.targets) for batch in batches)
    return total / sum(len(batch.targets) for batch in batches)


@contextmanager
def only_blocks(model: Any, places: Sequence[int]) -> Iterator[None]:
    """Within it the model has the blocks at these places alone. Not for writing with a cache."""
    layers = model.base_model.layers
    model.base_model.layers = torch.nn.ModuleList([layers[place] for place in places])
    try:
        yield
    finally:
        model.base_model.layers = layers


@contextmanager
def gated(model: Any, gates: Mapping[Kind, torch.Tensor]) -> Iterator[None]:
    """Within it what each unit gives is multiplied by its gate, (blocks, units) for each kind; gradients reach gates.

    A gate of 0 computes what the model computes when the unit is cut.
    """

    def watch(gate: torch.Tensor) -> Any:
        def hook(module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            wide = gate.repeat_interleave(given[0].shape[-1] // len(gate)).to(given[0])
            return (given[0] * wide, *given[1:])

        return hook

    handles = []
    for kind, rows in gates.items():
        for block, gate in zip(model.base_model.layers, rows, strict=True):
            part = block.mlp.down_proj if kind == "channels" else block.self_attn.o_proj
            handles.append(part.register_forward_pre_hook(watch(gate)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
