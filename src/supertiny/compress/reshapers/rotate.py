"""Turns the channels by an orthogonal matrix, so that no channel stands out; the model computes what it did.

Paper: Ashkboos et al., QuaRot, 2024, arXiv:2404.00456; Liu et al., SpinQuant, 2024, arXiv:2405.16406 (its R1 and R2).
Use when: weights or activations have outliers that rounding to few bits would pay for.
Differs from the paper: the turns that would have to be computed while the model runs are left out, so that it stays
stock; a width that is no power of two is turned by a Hadamard matrix times a random one (576 = 64 x 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from supertiny.compress.reshapers._folding import blocks_of
from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch


@dataclass(frozen=True)
class Rotate:
    """The heads' values are turned; and the residual stream, after the norms' weights are folded into what reads them.

    An output that is tied to the embedding cannot take in the last norm's weights: it becomes a matrix of its own, and
    the model larger, unless these weights are all alike. `stream: false` leaves tied models as small as they are.
    """

    stream: bool = True
    """Whether the residual stream is turned."""
    heads: bool = True
    """Whether values are turned within each head."""
    seed: int = 0
    """What the random signs and turns are drawn from."""

    def reshape(self, model: Any, calibration: Sequence[Batch]) -> Any:
        """The same model in other coordinates, changed in place. Raises UserError for an architecture not known."""
        blocks = blocks_of(model, "rotate")
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            if self.heads:
                for block in blocks:
                    _turn_heads(block.self_attn, generator)
            if self.stream:
                _fold_norms(model, blocks)
                _turn_stream(model, blocks, generator)
        return model


def _turn_heads(attention: Any, generator: torch.Generator) -> None:
    width = attention.head_dim
    turn = _orthogonal(width, generator)
    values, output = attention.v_proj, attention.o_proj
    heads = values.weight.double().reshape(-1, width, values.in_features)
    values.weight.copy_((turn.T @ heads).reshape(values.weight.shape))
    if values.bias is not None:
        values.bias.copy_((values.bias.double().reshape(-1, width) @ turn).reshape(-1))
    read = output.weight.double().reshape(output.out_features, -1, width)
    output.weight.copy_((read @ turn).reshape(output.weight.shape))


def _fold_norms(model: Any, blocks: Any) -> None:
    """Every norm's weights into the matrices that read it, so that it commutes with a turn."""
    for block in blocks:
        attention, mlp = block.self_attn, block.mlp
        _fold(block.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        _fold(block.post_attention_layernorm, mlp.gate_proj, mlp.up_proj)
    norm, head = model.base_model.norm, model.get_output_embeddings()
    if bool((norm.weight == norm.weight[0]).all()):
        return  # one number for all channels commutes with a turn as it stands
    if head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        model.config.tie_word_embeddings = False
        for name in ("_tied_weights_keys", "all_tied_weights_keys"):
            if getattr(model, name, None):
                setattr(model, name, {})
    _fold(norm, head)


def _fold(norm: Any, *layers: torch.nn.Linear) -> None:
    for layer in layers:
        layer.weight.copy_(layer.weight.double() * norm.weight.double())
    norm.weight.fill_(1)


def _turn_stream(model: Any, blocks: Any, generator: torch.Generator) -> None:
    """Whoever writes to the stream writes turned, whoever reads it turns back."""
    turn = _orthogonal(model.config.hidden_size, generator)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for layer in {id(part.weight): part for part in (embedding, head)}.values():
        layer.weight.copy_(layer.weight.double() @ turn)
    for block in blocks:
        attention, mlp = block.self_attn, block.mlp
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            layer.weight.copy_(layer.weight.double() @ turn)
        for layer in (attention.o_proj, mlp.down_proj):
            layer.weight.copy_(turn.T @ layer.weight.double())
            if layer.bias is not None:
                layer.bias.copy_(layer.bias.double() @ turn)


def _orthogonal(width: int, generator: torch.Generator) -> torch.Tensor:
    """(width, width) float64: Hadamard of the largest power of two that divides it, times a random turn of the rest."""
    if width < 1:
        raise UserError(f"rotate: a width of {width} cannot be turned")
    power = width & -width
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < power:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    rest = torch.randn(width // power, width // power, generator=generator, dtype=torch.float64)
    turn = torch.kron(torch.linalg.qr(rest)[0].contiguous(), hadamard / power**0.5)
    signs = torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1
    return signs[:, None] * turn
