"""Where a transformer can be rewritten without changing what it computes, and what flows there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM")


@dataclass(frozen=True)
class Seam:
    """A place at which channels may be divided by numbers before it and multiplied by them after it."""

    before: Any
    """The RMS norm, or the linear layer, whose outputs are divided."""
    after: tuple[torch.nn.Linear, ...]
    """Linear layers that read them."""
    heads: int = 0
    """How many query heads share a head of `before`; 0 where channels are read one to one."""
    width: int = 0
    """Channels of a head."""

    def spread(self, scale: torch.Tensor) -> torch.Tensor:
        """(inputs of `after`,) from (outputs of `before`,): heads that share keys and values share scales."""
        if not self.heads:
            return scale
        return scale.reshape(-1, 1, self.width).expand(-1, self.heads, -1).reshape(-1)

    def gathered(self, inputs: torch.Tensor) -> torch.Tensor:
        """(outputs of `before`,) from (inputs of `after`,): the largest of the channels that share one."""
        if not self.heads:
            return inputs
        return inputs.reshape(-1, self.heads, self.width).amax(dim=1).reshape(-1)

    @torch.no_grad()
    def fold(self, scale: torch.Tensor) -> None:
        """Divides the outputs before by `scale` (outputs,) and multiplies what reads them; in place."""
        scale = scale.double()
        before = self.before
        divisor = scale[:, None] if before.weight.ndim == 2 else scale
        before.weight.copy_(before.weight.double() / divisor)
        if getattr(before, "bias", None) is not None:
            before.bias.copy_(before.bias.double() / scale)
        for layer in self.after:
            layer.weight.copy_(layer.weight.double() * self.spread(scale))


def blocks_of(model: Any, method: str) -> Any:
    """The transformer blocks. Raises UserError, naming the architectures that work, for any other."""
    name = type(model).__name__
    if name not in ARCHITECTURES:
        raise UserError(f"{method} does not know how {name} is built", f"it works for {', '.join(ARCHITECTURES)}")
    layers = model.base_model.layers
    for part in model.modules():
        if isinstance(part, torch.nn.Linear) and type(part) is not torch.nn.Linear:
            raise UserError(f"{method} needs plain matrices; found {type(part).__name__}", "reshape before quantizing")
    if not isinstance(layers, torch.nn.ModuleList):
        raise UserError(f"{method} does not know where {name} keeps its blocks", "use keep")
    return layers


def seams_of(model: Any, method: str) -> list[Seam]:
    """Every seam of the model: norm to attention, norm to gate and up, values to output, up to down."""
    blocks, config, seams = blocks_of(model, method), model.config, []
    shared = config.num_attention_heads // (config.num_key_value_heads or config.num_attention_heads)
    for block in blocks:
        attention, mlp = block.self_attn, block.mlp
        seams += [
            Seam(block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            Seam(attention.v_proj, (attention.o_proj,), shared, attention.head_dim),
            Seam(block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            Seam(mlp.up_proj, (mlp.down_proj,)),
        ]
    return seams


@dataclass(frozen=True)
class Flow:
    """What reaches a layer on the calibration rows, in float32."""

    largest: torch.Tensor
    """(inputs,) largest magnitude."""
    mean: torch.Tensor
    """(inputs,) mean magnitude."""
    sample: torch.Tensor
    """(at most `_SAMPLE`, inputs) rows, evenly taken."""


_SAMPLE = 256


def flows(model: Any, calibration: Sequence[Batch], layers: Sequence[Any], method: str) -> list[Flow]:
    """What reaches each of these layers, padding left out. Raises UserError where there are no calibration rows."""
    places = sum(batch.tokens for batch in calibration)
    if not places:
        raise UserError(f"{method} has no calibration rows", "see prototype/train.jsonl")
    stride = max(1, places // _SAMPLE)
    watches = [_Watch(stride) for _ in layers]
    with _watched(layers, watches), torch.inference_mode():
        for batch in calibration:
            mask = batch.mask.to(model.device)
            for watch in watches:
                watch.mask = mask.bool()
            model.base_model(input_ids=batch.ids.to(model.device), attention_mask=mask, use_cache=False)
    return [Flow(watch.largest, watch.total / places, torch.cat(watch.rows)[:_SAMPLE]) for watch in watches]


class _Watch:
    """Adds up what flows into one layer."""

    def __init__(self, stride: int) -> None:
        self.stride, self.seen = stride, 0
        self.mask = self.largest = self.total = torch.zeros(())
        self.rows: list[torch.Tensor] = []

    def __call__(self, module: Any, given: Any) -> None:
        rows = given[0][self.mask].float()
        self.largest = torch.maximum(self.largest.to(rows.device), rows.abs().amax(dim=0))
        self.total = self.total.to(rows.device) + rows.abs().sum(dim=0)
        self.rows.append(rows[-self.seen % self.stride :: self.stride].clone())
        self.seen += len(rows)


@contextmanager
def _watched(layers: Sequence[Any], watches: Sequence[_Watch]) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(watch) for layer, watch in zip(layers, watches, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
