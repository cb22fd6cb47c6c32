"""Turns the hidden state onto its principal components and cuts the weak ones: all its matrices lose rank and size.

Paper: Ashkboos et al., SliceGPT, 2024, arXiv:2401.15024.
Use when: a narrower model is wanted, best after trim_vocabulary; heads that divide the width are what it needs.
Differs from the paper: one rotation serves all blocks, as the matrices between differing ones have no place in a stock
model; so do the two factors of a plain low-rank matrix, which is why there is no method that leaves those. Norms are
folded into what reads them, which gives the output a matrix of its own where it was the embedding's: such a student
is refused where that would make it larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.compress.reshapers._cutting import blocks_of, change, change_width, kept_counts, readers_of
from supertiny.compress.reshapers._task_loss import with_answers
from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch


@dataclass(frozen=True)
class Factorize:
    """Principal components of what the matrices read: the normed hidden states of all blocks, all tokens alike."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the hidden state's dimensions that goes; what stays is a multiple of the number of heads too."""
    multiple: Annotated[int, Field(ge=1)] = 32
    """Dimensions that stay are a multiple of it: llama.cpp's small types store blocks of 32."""

    needs = ("calibration",)

    def reshape(self, model: Any, calibration: Sequence[Batch]) -> Any:
        """The narrower model. Raises UserError where the share cannot be had or the model would not shrink."""
        blocks_of(model, "factorize")
        _, width = kept_counts(model, "factorize", 0.0, 0.0, self.multiple, self.share)
        batches = with_answers(calibration, "factorize", model)
        whole = model.config.hidden_size
        embedding = model.get_input_embeddings()
        if model.get_output_embeddings().weight is embedding.weight:
            rest = sum(weight.numel() for weight in model.parameters()) - embedding.weight.numel()
            if (rest + 2 * embedding.weight.numel()) * width >= (rest + embedding.weight.numel()) * whole:
                raise UserError(
                    f"factorize: at width {width} the output's own matrix would make the student larger",
                    "use trim_vocabulary first, a greater share, or narrow",
                )
        _fold(model)
        basis = _components(model, batches)[:, :width].to(model.device)
        change_width(
            model,
            width,
            lambda tensor: tensor.float() @ basis.float(),
            # The root of the mean square is over fewer dimensions now, of nearly the same sum.
            lambda weight: weight.new_full((width,), math.sqrt(whole / width)),
        )
        return model


@torch.no_grad()
def _fold(model: Any) -> None:
    """Moves the norms' weights into the matrices that read them: what is left of a norm commutes with rotations."""
    base, embedding, head = model.base_model, model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
        model.config.tie_word_embeddings = False
    for block in base.layers:
        attention, ffn = readers_of(block)[:3], readers_of(block)[3:]
        for norm, parts in ((block.input_layernorm, attention), (block.post_attention_layernorm, ffn)):
            _absorb(norm, parts)
    _absorb(base.norm, [head])


def _absorb(norm: Any, readers: Sequence[torch.nn.Linear]) -> None:
    for part in readers:
        change(part, columns=lambda tensor: tensor.float() * norm.weight.float())
    norm.weight.fill_(1.0)


@torch.inference_mode()
def _components(model: Any, batches: Sequence[Batch]) -> torch.Tensor:
    """(width, width) orthogonal: the directions of the normed states, the strongest first."""
    base = model.base_model
    norms = [norm for block in base.layers for norm in (block.input_layernorm, block.post_attention_layernorm)]
    width = model.config.hidden_size
    total = torch.zeros(width, width, dtype=torch.float64, device=model.device)
    mask = torch.zeros(0)

    def hook(module: Any, given: Any, result: torch.Tensor) -> None:
        rows = result[mask].float()
        total.add_((rows.T @ rows).double())

    handles = [norm.register_forward_hook(hook) for norm in (*norms, base.norm)]
    try:
        for batch in batches:
            mask = batch.mask.bool()
            base(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    components: torch.Tensor = torch.linalg.eigh(total.cpu()).eigenvectors.flip(1)
    return components
