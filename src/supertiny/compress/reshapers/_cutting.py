"""Cuts a model smaller, by the same number in all blocks, so that its configuration stays stock.

A unit is what is cut at once: an FFN channel (rows of gate and up, a column of down), a head (a key-value head with the
query heads that read it), a dimension of the hidden state, a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from supertiny.core.errors import UserError

Kind = Literal["channels", "heads"]
Move = Callable[[torch.Tensor], torch.Tensor]
KNOWN = ("llama", "mistral", "qwen2", "qwen3")
_FARTHEST = 0.05  # share of the units by which a cut may miss what was asked, for the sake of `multiple`


def blocks_of(model: Any, method: str, known: Sequence[str] = KNOWN) -> Any:
    """The transformer blocks, a ModuleList. Raises UserError where the model is none of those that are known."""
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) not in known:
        raise UserError(f"{method} does not know how {type(model).__name__} is built", f"it knows {', '.join(known)}")
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{method}: the student is quantized already", "reshape it first, quantize it last")
    return model.base_model.layers


def head_counts(model: Any) -> tuple[int, int]:
    """(query heads, key-value heads)."""
    config = model.config
    return int(config.num_attention_heads), int(config.num_key_value_heads or config.num_attention_heads)


def kept_of(total: int, share: float, multiple: int, what: str) -> int:
    """How many of `total` stay when `share` of them goes: the nearest multiple.

    Raises UserError where nothing would go or stay, or where that multiple is far from what was asked.
    """
    if share == 0:
        return total
    wished = total * (1 - share)
    possible = range(multiple, total, multiple)
    hint = "lower `multiple`" if multiple > 1 else "choose something else to cut"
    if not possible:
        raise UserError(f"{what}: {total} cannot be cut to a smaller multiple of {multiple}", hint)
    nearest = min(possible, key=lambda count: abs(count - wished))
    if abs(nearest - wished) > max(_FARTHEST * total, 0.5):
        near = sorted(sorted(possible, key=lambda count: abs(count - wished))[:2], reverse=True)
        shares = " or ".join(f"{1 - count / total:.3f}" for count in near)
        raise UserError(
            f"{what}: a share of {share} of {total} leaves no multiple of {multiple}", f"the nearest shares: {shares}"
        )
    return nearest


def kept_counts(
    model: Any, method: str, channels: float, heads: float, multiple: int, width: float = 0.0
) -> tuple[dict[Kind, int], int]:
    """Units per block that stay, for each kind that is cut at all, and the hidden width that stays.

    Raises UserError where a share cannot be had, or transformers would not open what comes out.
    """
    blocks_of(model, method)
    config, counts = model.config, dict[Kind, int]()
    whole, groups = head_counts(model)
    if channels:
        counts["channels"] = kept_of(config.intermediate_size, channels, multiple, f"{method}, FFN channels")
    if heads:
        counts["heads"] = kept_of(groups, heads, 1, f"{method}, key-value heads")
    left = whole // groups * counts.get("heads", groups)
    kept = kept_of(config.hidden_size, width, math.lcm(left, multiple), f"{method}, hidden width ({left} heads)")
    if kept % left:
        fitting = [n for n in range(1, groups) if kept % (whole // groups * n) == 0]
        shares = ", ".join(f"{1 - n / groups:.3f}" for n in fitting) or "none"
        raise UserError(
            f"{method}: {left} heads do not divide the hidden width {kept}, so transformers would not open the model",
            f"shares of heads that work: {shares}",
        )
    return counts, kept


def strongest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the `count` highest scores of each row (rows, units), in ascending order; of equals the first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(dim=-1).values


def cut(model: Any, scores: Mapping[Kind, torch.Tensor], counts: Mapping[Kind, int]) -> None:
    """Keeps, in each block, the units of the highest scores (blocks, units)."""
    for kind, count in counts.items():
        kept = strongest(scores[kind], count)
        (_keep_channels if kind == "channels" else _keep_heads)(model, kept.to(model.device))


def keep_blocks(model: Any, places: Sequence[int]) -> None:
    """Leaves the blocks at these places; the cache's numbering stays contiguous."""
    layers, config = model.base_model.layers, model.config
    model.base_model.layers = torch.nn.ModuleList([layers[place] for place in places])
    for place, layer in enumerate(model.base_model.layers):
        layer.self_attn.layer_idx = place
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[place] for place in places]
    config.num_hidden_layers = len(places)
    if hasattr(config, "max_window_layers"):
        config.max_window_layers = min(config.max_window_layers, len(places))


def _keep_channels(model: Any, kept: torch.Tensor) -> None:
    for block, index in zip(model.base_model.layers, kept, strict=True):
        for part in (block.mlp.gate_proj, block.mlp.up_proj):
            change(part, rows=_taking(index))
        change(block.mlp.down_proj, columns=_taking(index, -1))
        block.mlp.intermediate_size = len(index)
    model.config.intermediate_size = kept.shape[1]


def _keep_heads(model: Any, kept: torch.Tensor) -> None:
    whole, groups = head_counts(model)
    for block, index in zip(model.base_model.layers, kept, strict=True):
        attention = block.self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            change(part, rows=_taking(_spread(index, part.out_features // groups)))
        change(attention.o_proj, columns=_taking(_spread(index, attention.o_proj.in_features // groups), -1))
    # Where the configuration leaves it out, the width of a head would be computed from the number of heads.
    model.config.head_dim = model.base_model.layers[0].self_attn.head_dim
    model.config.num_attention_heads = whole // groups * kept.shape[1]
    model.config.num_key_value_heads = kept.shape[1]


def _spread(index: torch.Tensor, size: int) -> torch.Tensor:
    """Places of the `size` rows that belong to each unit."""
    return (index[:, None] * size + torch.arange(size, device=index.device)).flatten()


def _taking(index: torch.Tensor, dimension: int = 0) -> Move:
    return lambda tensor: tensor.index_select(dimension, index)


@torch.no_grad()
def change_width(model: Any, width: int, move: Move, norm: Move) -> None:
    """Brings the hidden state to `width`: `move` maps the last dimension of a tensor, `norm` the weight of a norm."""
    for block in model.base_model.layers:
        for part in readers_of(block):
            change(part, columns=move)
        for part in writers_of(block):
            change(part, rows=lambda tensor: move(tensor.T).T)
        for layer in (block.input_layernorm, block.post_attention_layernorm):
            layer.weight = parameter_like(layer.weight, norm(layer.weight))
        block.hidden_size = block.mlp.hidden_size = width
    model.base_model.norm.weight = parameter_like(model.base_model.norm.weight, norm(model.base_model.norm.weight))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    embedding.weight = parameter_like(embedding.weight, move(embedding.weight))
    embedding.embedding_dim = width
    change(head, columns=move)
    if tied:
        head.weight = embedding.weight
    # Where the configuration leaves it out, the width of a head would be computed from the new width.
    model.config.head_dim = model.base_model.layers[0].self_attn.head_dim
    model.config.hidden_size = width


def keep_width(model: Any, kept: torch.Tensor) -> None:
    """Leaves these dimensions (kept,) of the hidden state.

    A norm divides by the root of the mean square over fewer dimensions: where the others were zero that mean has
    grown, and the norm's weight makes good for it.
    """
    scale = math.sqrt(model.config.hidden_size / len(kept))
    kept = kept.to(model.device)
    change_width(model, len(kept), lambda tensor: tensor[..., kept], lambda weight: weight[kept] * scale)


def readers_of(block: Any) -> list[torch.nn.Linear]:
    """Matrices of a block whose input is the normed hidden state."""
    attention, ffn = block.self_attn, block.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, ffn.gate_proj, ffn.up_proj]


def writers_of(block: Any) -> list[torch.nn.Linear]:
    """Matrices of a block whose output is added to the hidden state."""
    return [block.self_attn.o_proj, block.mlp.down_proj]


@torch.no_grad()
def change(linear: torch.nn.Linear, rows: Move | None = None, columns: Move | None = None) -> None:
    """Maps the rows of a matrix (out, in) and its bias (out,), or its columns."""
    if rows is not None:
        linear.weight = parameter_like(linear.weight, rows(linear.weight))
        if linear.bias is not None:
            linear.bias = parameter_like(linear.bias, rows(linear.bias))
    if columns is not None:
        linear.weight = parameter_like(linear.weight, columns(linear.weight))
    linear.out_features, linear.in_features = linear.weight.shape


def parameter_like(old: torch.Tensor, new: torch.Tensor) -> torch.nn.Parameter:
    """A parameter of the old one's dtype that shares no memory with it."""
    made = new.detach().to(old.dtype).clone(memory_format=torch.contiguous_format)
    return torch.nn.Parameter(made, requires_grad=old.requires_grad)
