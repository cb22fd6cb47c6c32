"""Drops the transformer blocks that the task misses least.

Paper: Men et al., ShortGPT, 2024, arXiv:2403.03853.
Use when: latency must fall; time and bytes go with the number of blocks. Recovery afterwards is needed.
Differs from the paper: influence is measured on the places where the task's answers are written, not on general text;
`by: loss` asks what is lost without a block, as Kim et al., Shortened LLaMA, 2024, arXiv:2402.02834, do, and asks
again after each block that went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from supertiny.compress.reshapers._cutting import blocks_of, keep_blocks
from supertiny.compress.reshapers._task_loss import Advance, mean_loss, only_blocks, unheard, with_answers
from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch


@dataclass(frozen=True)
class DropBlocks:
    """Influence of a block, mean over answer places: 1 - cosine of the states before and after it; or the loss."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the blocks that is dropped, rounded to whole blocks; at least one stays."""
    blocks: Annotated[int, Field(ge=0)] | None = None
    """Number of blocks that is dropped, in place of `share`."""
    by: Literal["influence", "loss"] = "influence"
    """`influence` looks at all blocks in one pass; `loss` drops one after the other, each time trying all: surer, and
    slower by as many passes as blocks times blocks dropped."""

    needs = ("calibration",)

    @property
    def reports(self) -> bool:
        return self.by == "loss"  # one pass over the rows is over soon

    def reshape(self, model: Any, calibration: Sequence[Batch], advance: Advance = unheard) -> Any:
        """The model with fewer blocks. Raises UserError where none would stay, or it is built strangely."""
        total = len(blocks_of(model, "drop_blocks"))
        count = round(self.share * total) if self.blocks is None else self.blocks
        if count >= total:
            raise UserError(f"drop_blocks: cannot drop {count} of {total} blocks", "leave at least one")
        if count == 0:
            return model
        batches = with_answers(calibration, "drop_blocks", model)
        if self.by == "influence":
            weakest = _influences(model, batches).argsort(stable=True)[:count].tolist()
            keep_blocks(model, [place for place in range(total) if place not in weakest])
        else:
            keep_blocks(model, _cheapest(model, batches, count, advance))
        return model


@torch.inference_mode()
def _influences(model: Any, batches: Sequence[Batch]) -> torch.Tensor:
    """(blocks,) influence of each block; 0 is a block that only scales the hidden state."""
    layers = model.base_model.layers
    total = torch.zeros(len(layers), dtype=torch.float64)
    wanted = torch.zeros(0)

    def watch(place: int) -> Any:
        def hook(module: Any, given: Any, keywords: Any, result: Any) -> None:
            before = given[0] if given else keywords["hidden_states"]
            after = result[0] if isinstance(result, tuple) else result
            cosine = torch.cosine_similarity(before[wanted].double(), after[wanted].double(), dim=-1)
            total[place] += float((1 - cosine).sum())

        return hook

    handles = [layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        for batch in batches:
            wanted = batch.wanted
            model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return total / sum(len(batch.targets) for batch in batches)


def _cheapest(model: Any, batches: Sequence[Batch], count: int, advance: Advance) -> list[int]:
    """Places of the blocks that stay when, `count` times, the one goes without which the loss is least."""
    left = list(range(len(model.base_model.layers)))
    tried, tries = 0, sum(len(left) - gone for gone in range(count))
    for _ in range(count):
        losses = []
        for place in left:
            with only_blocks(model, [other for other in left if other != place]):
                losses.append(mean_loss(model, batches))
            tried += 1
            advance(tried, tries)
        del left[losses.index(min(losses))]
    return left
