"""Lets neighbouring blocks that look at the same places share the weights of their queries and keys.

Paper: Rajabzadeh et al., EchoAtt, 2024, arXiv:2409.14595.
Use when: distinct weights are what counts; the file and the time of an answer stay as they are.
Differs from the paper: there a block is handed the attention of the one before it and computes none; no stock model
can do so, therefore blocks share the weights it is computed with and saved files hold a copy for each block; which
blocks share is chosen pair by pair, and the training afterwards is the stage's recovery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.compress.reshapers._cutting import blocks_of
from supertiny.compress.reshapers._sharing import write_copies
from supertiny.compress.reshapers._task_loss import with_answers
from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch


@dataclass(frozen=True)
class ShareAttention:
    """Similarity of neighbours: mean cosine of their attention matrices; the first and the last block stay alone."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the blocks that give up queries and keys of their own, rounded to whole blocks."""
    longest: Annotated[int, Field(ge=2)] = 2
    """Most blocks that share one set."""

    needs = ("calibration",)

    def reshape(self, model: Any, calibration: Sequence[Batch]) -> Any:
        """The model with shared weights. Raises UserError where fewer blocks can share than are asked to."""
        layers = blocks_of(model, "share_attention")
        count = round(self.share * len(layers))
        inner = len(layers) - 2
        most = inner - -(-inner // self.longest)
        if not 1 <= count <= most:
            raise UserError(
                f"share_attention: {count} of {len(layers)} blocks cannot follow another",
                f"from 1 to {most} can, with `longest` {self.longest}" if most > 0 else "it needs four blocks",
            )
        likeness = _likeness(model, with_answers(calibration, "share_attention", model))
        for place in _followers(likeness, count, self.longest):
            before, own = layers[place - 1].self_attn, layers[place].self_attn
            for name in ("q_proj", "k_proj", "q_norm", "k_norm"):
                if hasattr(own, name):
                    setattr(own, name, getattr(before, name))
        write_copies(model)
        return model


def _followers(likeness: torch.Tensor, count: int, longest: int) -> list[int]:
    """Places of the blocks that follow the one before them, ascending; the most alike pairs that leave room for all.

    `likeness` (blocks,) is that of each block with the one before it.
    """
    inner = range(2, len(likeness) - 1)
    chosen: list[int] = []
    for place in sorted(inner, key=lambda place: -float(likeness[place])):
        tried = sorted([*chosen, place])
        if len(chosen) < count and _room(tried, inner, longest) >= count:
            chosen = tried
    return chosen


def _room(chosen: Sequence[int], inner: range, longest: int) -> int:
    """Most followers there can be when the chosen ones are among them; 0 where a run of them is too long already."""
    needed = set(chosen)
    # reach[r]: most followers so far that end in a run of r blocks which share.
    reach: dict[int, int] = {1: 0}
    for place in inner:
        onward = {run + 1: total + 1 for run, total in reach.items() if run < longest}
        if place not in needed:
            onward[1] = max(reach.values())
        reach = onward
        if not reach:
            return 0
    return max(reach.values())


@torch.inference_mode()
def _likeness(model: Any, batches: Sequence[Batch]) -> torch.Tensor:
    """(blocks,) mean cosine of a block's attention matrices with those of the block before it, head by head."""
    layers = model.base_model.layers
    total, matrices = torch.zeros(len(layers), dtype=torch.float64), 0
    before = mask = torch.zeros(0)

    def watch(place: int) -> Any:
        def hook(module: Any, given: Any, result: Any) -> None:
            nonlocal before
            now = (result[1].float() * mask[:, None, :, None]).flatten(2)
            if place:
                total[place] += float(torch.cosine_similarity(before, now, dim=-1).sum())
            before = now

        return hook

    kind = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the one that tells its weights
    handles = [layer.self_attn.register_forward_hook(watch(place)) for place, layer in enumerate(layers)]
    try:
        for batch in batches:
            mask = batch.mask
            model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
            matrices += len(batch.ids) * int(model.config.num_attention_heads)
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(kind)
    return total / matrices
