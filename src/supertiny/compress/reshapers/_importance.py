"""How much each unit of a model matters: a score per unit, comparable within a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from supertiny.compress.reshapers._cutting import Kind, head_counts, readers_of, writers_of
from supertiny.compress.reshapers._task_loss import answer_logits, answer_loss
from supertiny.training.lessons import Batch

Importance = Literal["activation", "fluctuation", "gradient", "magnitude", "random"]
Pick = Callable[[torch.Tensor], torch.Tensor]


def importance(
    model: Any, batches: Sequence[Batch], kind: Kind | Literal["width"], by: Importance, seed: int = 0
) -> torch.Tensor:
    """Scores (blocks, units) in float64; of the hidden width (1, width), as all blocks share it.

    `activation`: mean square of what the unit gives, times the squared norm of the weights that read it (Wanda's
    metric, summed over a unit). `fluctuation`: the same with the variance (FLAP's). `gradient`: |weight * gradient|,
    summed over all weights of the unit. `magnitude`: sum of the squared weights. `random`: drawn from the seed.
    """
    if by == "gradient":
        return _by_gradient(model, batches, kind)
    if by in ("activation", "fluctuation"):
        return _by_activation(model, batches, kind, by == "fluctuation")
    squares = _scored(model, kind, lambda weight: weight.detach().float().square())
    if by == "random":
        return torch.rand(squares.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return squares


def _scored(model: Any, kind: Kind | Literal["width"], pick: Pick) -> torch.Tensor:
    """Sum of what `pick` gives for the weights of each unit."""
    blocks = model.base_model.layers
    groups = head_counts(model)[1]
    if kind != "width":
        return torch.stack([_unit_sums(block, kind, groups, pick) for block in blocks]).cpu()
    total = torch.zeros(model.config.hidden_size, dtype=torch.float64, device=model.device)
    outer = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in (*outer.values(), *(part.weight for block in blocks for part in readers_of(block))):
        total += pick(weight).sum(0)
    for weight in (part.weight for block in blocks for part in writers_of(block)):
        total += pick(weight).sum(1)
    return total[None].cpu()


def _unit_sums(block: Any, kind: Kind, groups: int, pick: Pick) -> torch.Tensor:
    if kind == "channels":
        inner, outer, units = [block.mlp.gate_proj, block.mlp.up_proj], block.mlp.down_proj, block.mlp.intermediate_size
    else:
        attention = block.self_attn
        inner, outer, units = [attention.q_proj, attention.k_proj, attention.v_proj], attention.o_proj, groups
    sums = [pick(part.weight).sum(1) for part in inner] + [pick(outer.weight).sum(0)]
    return torch.stack([one.reshape(units, -1).sum(1) for one in sums]).sum(0).double()


def _by_gradient(model: Any, batches: Sequence[Batch], kind: Kind | Literal["width"]) -> torch.Tensor:
    total: torch.Tensor | None = None
    for batch in batches:
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            answer_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        scores = _scored(model, kind, _first_order)
        total = scores if total is None else total + scores
    model.zero_grad(set_to_none=True)
    assert total is not None
    return total


def _first_order(weight: torch.Tensor) -> torch.Tensor:
    """What the loss changes by, to first order, when a weight becomes zero."""
    if weight.grad is None:
        return torch.zeros_like(weight, dtype=torch.float32)
    return (weight.detach().float() * weight.grad.float()).abs()


def _by_activation(model: Any, batches: Sequence[Batch], kind: Kind | Literal["width"], spread: bool) -> torch.Tensor:
    blocks = model.base_model.layers
    if kind == "width":
        parts = [part for block in blocks for part in readers_of(block)] + [model.get_output_embeddings()]
        powers = _input_powers(model, batches, parts, spread)
        each = [power * _column_squares(part) for power, part in zip(powers, parts, strict=True)]
        # Every reader has one say, otherwise the output's many rows would outvote all blocks.
        return torch.stack([one / one.sum().clamp_min(1e-30) for one in each]).sum(0)[None].cpu()
    parts = [block.mlp.down_proj if kind == "channels" else block.self_attn.o_proj for block in blocks]
    units = parts[0].in_features if kind == "channels" else head_counts(model)[1]
    powers = _input_powers(model, batches, parts, spread)
    each = [power * _column_squares(part) for power, part in zip(powers, parts, strict=True)]
    return torch.stack([one.reshape(units, -1).sum(1) for one in each]).cpu()


def _column_squares(part: Any) -> torch.Tensor:
    squares: torch.Tensor = part.weight.detach().float().square().sum(0).double()
    return squares


@torch.inference_mode()
def _input_powers(model: Any, batches: Sequence[Batch], parts: Sequence[Any], spread: bool) -> list[torch.Tensor]:
    """Per part (in,) the mean square, or the variance, of its input over all tokens that are no padding."""
    sums = [torch.zeros(2, part.in_features, dtype=torch.float64, device=model.device) for part in parts]
    seen = [0] * len(parts)
    mask = torch.zeros(0)

    def watch(place: int) -> Any:
        def hook(module: Any, given: tuple[torch.Tensor, ...]) -> None:
            rows = (given[0][mask] if given[0].ndim == 3 else given[0]).float()
            sums[place][0] += rows.sum(0)
            sums[place][1] += rows.square().sum(0)
            seen[place] += len(rows)

        return hook

    handles = [part.register_forward_pre_hook(watch(place)) for place, part in enumerate(parts)]
    try:
        for batch in batches:
            mask = batch.mask.bool()
            answer_logits(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    means = [total / count for total, count in zip(sums, seen, strict=True)]
    return [(square - mean.square()).clamp_min(0) if spread else square for mean, square in means]
