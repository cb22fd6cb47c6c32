"""Training that keeps less for the backward pass and computes nothing twice; the numbers are the stock ones.

Stock layers keep float32 copies of what they normalise, both factors of a gated layer and their product, keys and
values once for each head that shares them, and logits two times more in float32. On a CPU, where these are most of a
step's memory beside the optimiser's, writing and reading them also takes time. Here what is cheap is computed again;
the forward pass stays bit for bit the same. The tokens of a batch go through the layers one behind the other, without
padding, and those of a beginning that several rows share go once: a prompt with many answers, or the description of all
functions. Rows stand side by side for attention alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import linear, silu
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import SiLUActivation
from transformers.masking_utils import eager_mask
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    eager_attention_forward,
    repeat_kv,
)
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm

NAME = "sparing"
"""Of the attention, among transformers' implementations."""
_NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)
_GATED = (LlamaMLP, MistralMLP, Qwen2MLP)
_ATTENTIONS = (LlamaAttention, MistralAttention, Qwen2Attention)
_CHUNK = 64  # positions whose logits stand in float32 at a time


@dataclass(frozen=True)
class Layout:
    """Which tokens of padded rows (rows, length) are computed, one behind the other, and which rows they serve."""

    rows: int
    length: int
    places: torch.Tensor
    """(tokens,) in rows * length: where each token stands, in the first of its rows."""
    sources: torch.Tensor
    """(rows * length,): the token that each place sees; any at all where there is padding."""

    @classmethod
    def of(cls, ids: torch.Tensor, mask: torch.Tensor) -> Layout:
        """Tokens with the same beginning, at the same place of their rows, are one."""
        rows, length = ids.shape
        found = torch.full((rows, length), -1)
        before = found[:, 0]
        count = 0
        for place in range(length):
            here = mask[:, place].bool()
            # One number for what stands before and the token itself.
            _, kind = torch.unique((before + 1) * (int(ids.max()) + 1) + ids[:, place], return_inverse=True)
            _, number = torch.unique(kind[here], return_inverse=True)
            found[here, place] = number + count
            count += int(number.max()) + 1 if len(number) else 0
            before = torch.where(here, found[:, place], before)
        flat = found.flatten()
        real = (flat >= 0).nonzero()[:, 0]
        first = torch.full((count,), rows * length).scatter_reduce_(0, flat[real], real, "amin")
        places, order = first.sort()
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(count))
        return cls(rows, length, places, torch.where(flat >= 0, rank[flat.clamp(min=0)], 0))

    def spread(self, states: torch.Tensor) -> torch.Tensor:
        """(tokens, ...) to (rows, length, ...): each place gets its token's."""
        return states.index_select(0, self.sources).view(self.rows, self.length, *states.shape[1:])

    def picked(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, length, ...) to (tokens, ...): of each token's places the first."""
        return states.reshape(self.rows * self.length, *states.shape[2:]).index_select(0, self.places)

    def put_back(self, gradient: torch.Tensor) -> torch.Tensor:
        """Gradient of what was `picked`: zero but at the first places."""
        whole = gradient.new_zeros(self.rows * self.length, *gradient.shape[1:])
        return whole.index_copy_(0, self.places, gradient).view(self.rows, self.length, *gradient.shape[1:])

    def summed(self, gradient: torch.Tensor) -> torch.Tensor:
        """Gradient of what was `spread`; that of padding must be zero."""
        flat = gradient.reshape(self.rows * self.length, *gradient.shape[2:])
        return flat.new_zeros(len(self.places), *flat.shape[1:]).index_add_(0, self.sources, flat)


def hidden_states(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Last hidden states (rows, length, width) of token ids and mask (rows, length), thriftily where that is possible.

    What stands where there is no token means nothing.
    """
    rows, length = ids.shape
    with spared(model) as thrifty:
        if thrifty and length <= (getattr(model.config, "sliding_window", None) or length):
            layout = Layout.of(ids, mask)
            if len(layout.places) < rows * length:
                return _once(model, ids, mask, layout)
        states: torch.Tensor = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        return states


def _once(model: Any, ids: torch.Tensor, mask: torch.Tensor, layout: Layout) -> torch.Tensor:
    seen = torch.ones(layout.length, layout.length, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    states: torch.Tensor = model.base_model(
        input_ids=ids.flatten()[layout.places][None],
        position_ids=(layout.places % layout.length)[None],
        attention_mask=torch.zeros(seen.shape, dtype=model.dtype).masked_fill_(~seen, torch.finfo(model.dtype).min),
        use_cache=False,
        layout=layout,
    )[0]
    return layout.spread(states[0])


@contextmanager
def spared(model: Any) -> Iterator[bool]:
    """Within the block the model's forward pass keeps less; gives whether its attention does, too.

    Does nothing on other devices and for other layers. The model is left as it was: nothing of this is copied or saved
    with it.
    """
    # Layers that are run twice must do the same twice, and the second time is outside of this block.
    twice = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if not torch.is_grad_enabled() or model.device.type != "cpu" or twice:
        yield False
        return
    with ExitStack() as stack:
        attentive = False
        for module in model.modules():
            if type(module) in _NORMS:
                stack.enter_context(_forward(module, _norm))
            elif type(module) in _GATED and isinstance(module.act_fn, torch.nn.SiLU | SiLUActivation):
                stack.enter_context(_forward(module, _gated))
            attentive |= type(module) in _ATTENTIONS and not module.attention_dropout
        thrifty = attentive and model.config._attn_implementation == "eager"
        if thrifty:
            stack.enter_context(_attention(model.config))
        yield thrifty


@contextmanager
def _forward(module: torch.nn.Module, function: Any) -> Iterator[None]:
    if "forward" in vars(module):  # somebody else's
        yield
        return
    module.forward = MethodType(function, module)
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _attention(config: Any) -> Iterator[None]:
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "eager"


def _norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = _RootMeanSquare.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore
    return normed


class _RootMeanSquare(torch.autograd.Function):
    """Keeps its input and one number a position."""

    @staticmethod
    def forward(context: Any, states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        whole = states.float()
        scale = torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + epsilon)
        context.save_for_backward(states, weight, scale)
        return weight * (whole * scale).to(states.dtype)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, scale = context.saved_tensors
        normed = states.float() * scale
        of_weight = of_states = None
        if context.needs_input_grad[1]:
            of_weight = (gradient * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if context.needs_input_grad[0]:
            inner = (gradient * weight).float()
            along = (inner * normed).mean(-1, keepdim=True)
            of_states = torch.addcmul(inner, normed, along, value=-1).mul_(scale).to(states.dtype)
        return of_states, of_weight, None


def _gated(self: Any, x: torch.Tensor) -> torch.Tensor:
    gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
    if _is_plain(down):
        return _GatedDown.apply(gate, up, down.weight)  # type: ignore[no-any-return, no-untyped-call]
    projected: torch.Tensor = down(_Gate.apply(gate, up))  # type: ignore[no-untyped-call]
    return projected


def _is_plain(layer: Any) -> bool:
    """Whether calling it is a product with its weight and nothing else: no adapter, no hook, no rounding."""
    return (
        type(layer) is torch.nn.Linear and layer.bias is None and not (layer._forward_hooks or layer._forward_pre_hooks)
    )


class _Gate(torch.autograd.Function):
    """silu(gate) * up, which keeps neither silu(gate)."""

    @staticmethod
    def forward(context: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gate, up = context.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), silu(gate).mul_(gradient)


class _GatedDown(torch.autograd.Function):
    """(silu(gate) * up) @ weight.T, which keeps the product neither."""

    @staticmethod
    def forward(context: Any, gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(gate, up, weight)
        return linear(silu(gate).mul_(up), weight)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up, weight = context.saved_tensors
        opened = silu(gate)
        of_weight = None
        if context.needs_input_grad[2]:
            of_weight = gradient.flatten(0, -2).T @ (opened * up).flatten(0, -2)
        inner = gradient @ weight
        of_up = opened.mul_(inner)
        return torch.ops.aten.silu_backward(inner.mul_(up), gate), of_up, of_weight


def sparing_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager attention of states (rows, heads, length, width): (rows, length, heads, width) and the probabilities.

    Keys and values may have fewer heads; `attention_mask` is added to the scores. With a `layout`, states come and go
    as one row. No gradient passes through the probabilities that it gives.
    """
    if dropout > 0 or not torch.is_grad_enabled() or not isinstance(module, _ATTENTIONS):
        stock: tuple[torch.Tensor, torch.Tensor] = eager_attention_forward(
            module, query, key, value, attention_mask, scaling, dropout, **more
        )
        return stock
    mixed, shares = _Attend.apply(query, key, value, attention_mask, scaling, layout)  # type: ignore[no-untyped-call]
    return mixed, shares


class _Attend(torch.autograd.Function):
    """Keeps query, key, value as they came, not once for each head, and the probabilities in their dtype."""

    @staticmethod
    def forward(
        context: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        layout: Layout | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        context.scaling, context.layout = scaling, layout
        groups = query.shape[1] // key.shape[1]
        wide = _side_by_side(layout, query, key, value)
        scores = torch.matmul(wide[0], repeat_kv(wide[1], groups).transpose(2, 3)).mul_(scaling)
        if mask is not None:
            scores = scores.add_(mask)
        shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        mixed = torch.matmul(shares, repeat_kv(wide[2], groups)).transpose(1, 2).contiguous()
        context.save_for_backward(query, key, value, shares)
        context.mark_non_differentiable(shares)
        return mixed if layout is None else layout.picked(mixed)[None], shares

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        *narrow, shares = context.saved_tensors
        layout: Layout | None = context.layout
        query, key, value = _side_by_side(layout, *narrow)
        of_mixed = (gradient if layout is None else layout.put_back(gradient[0])).transpose(1, 2)
        rows, heads, length, width = query.shape
        few, seen = key.shape[1:3]
        # Heads that share a key stand as further rows of one product, which also adds up their gradients.
        together = (rows, few, heads // few * length)
        of_mixed = of_mixed.reshape(*together, width)
        whole = shares.view(*together, seen)
        of_value = torch.matmul(whole.transpose(2, 3), of_mixed)
        of_shares = torch.matmul(of_mixed, value.transpose(2, 3)).float()
        of_scores = torch._softmax_backward_data(of_shares, whole.float(), -1, torch.float32)
        inner = of_scores.mul_(context.scaling).to(query.dtype)
        of_query = torch.matmul(inner, key).view(query.shape)
        of_key = torch.matmul(inner.transpose(2, 3), query.reshape(*together, width))
        found = [of_query, of_key, of_value]
        if layout is not None:
            found = [layout.summed(states.transpose(1, 2)).transpose(0, 1)[None] for states in found]
        return *found, None, None, None


def _side_by_side(layout: Layout | None, *states: torch.Tensor) -> list[torch.Tensor]:
    """States (1, heads, tokens, width) as (rows, heads, length, width)."""
    if layout is None:
        return list(states)
    return [layout.spread(each[0].transpose(0, 1)).transpose(1, 2) for each in states]


def head_loss(states: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of hidden states (positions, width) under the output layer, targets (positions,).

    Logits are held once, in the model's dtype, and become their own gradient in place.
    """
    if not _is_plain(head) or len(targets) == 0:
        return torch.nn.functional.cross_entropy(head(states).float(), targets)
    loss: torch.Tensor = _HeadLoss.apply(states, head.weight, targets)  # type: ignore[no-untyped-call]
    return loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = linear(states, weight)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for part, wanted in zip(torch.split(logits, _CHUNK), torch.split(targets, _CHUNK), strict=True):
            logprobs = torch.log_softmax(part, dim=-1, dtype=torch.float32)
            total -= logprobs.gather(-1, wanted[:, None]).sum(dtype=torch.float64)
            shares = logprobs.exp_()
            shares.scatter_add_(-1, wanted[:, None], shares.new_full((len(wanted), 1), -1.0))
            part.copy_(shares.mul_(1 / len(targets)))
        context.save_for_backward(states, weight, logits)
        return (total / len(targets)).float()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, of_logits = context.saved_tensors
        of_states = (of_logits @ weight).mul_(gradient) if context.needs_input_grad[0] else None
        of_weight = (of_logits.T @ states.mul(gradient)) if context.needs_input_grad[1] else None
        return of_states, of_weight, None


AttentionInterface.register(NAME, sparing_attention)
AttentionMaskInterface.register(NAME, eager_mask)
