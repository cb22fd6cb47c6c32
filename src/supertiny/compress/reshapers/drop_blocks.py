"""Drops the transformer blocks that change the hidden state least.

Paper: Men et al., ShortGPT, 2024, arXiv:2403.03853.
Use when: latency must fall; time and bytes go with the number of blocks. Recovery afterwards is needed.
Differs from the paper: influence is measured on the places where the task's answers are written, not on general text;
`by: loss` asks what is lost without a block, as Kim et al., Shortened LLaMA, 2024, arXiv:2402.02834, do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch


@dataclass(frozen=True)
class DropBlocks:
    """Influence of a block, mean over answer places: 1 - cosine of the states before and after it, or the loss."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the blocks that is dropped, rounded to whole blocks; at least one stays."""
    blocks: Annotated[int, Field(ge=0)] | None = None
    """Number of blocks that is dropped, in place of `share`."""
    by: Literal["cosine", "loss"] = "cosine"
    """`cosine` looks at all blocks in one pass; `loss` tries the model without each block: slower, and surer."""

    needs = ("calibration",)

    def reshape(self, model: Any, calibration: Sequence[Batch]) -> Any:
        """The model with fewer blocks. Raises UserError where it has no list of blocks, or fewer than are asked for."""
        layers = _blocks_of(model)
        count = round(self.share * len(layers)) if self.blocks is None else self.blocks
        if count >= len(layers):
            raise UserError(f"drop_blocks: cannot drop {count} of {len(layers)} blocks", "leave at least one")
        if count == 0:
            return model
        measured = _influences if self.by == "cosine" else _losses_without
        weakest = measured(model, calibration).argsort(stable=True)[:count].tolist()
        _keep([place for place in range(len(layers)) if place not in weakest], model)
        return model


def _blocks_of(model: Any) -> torch.nn.ModuleList:
    """The transformer blocks. Raises UserError where the model keeps none under `layers`."""
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise UserError(f"drop_blocks does not know where {type(model).__name__} keeps its blocks", "use keep")
    return layers


def _influences(model: Any, calibration: Sequence[Batch]) -> torch.Tensor:
    """(blocks,) influence of each block; 0 is a block that only scales the hidden state."""
    layers = _blocks_of(model)
    total, places = torch.zeros(len(layers), dtype=torch.float64), 0
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
        with torch.inference_mode():
            for batch in calibration:
                wanted = batch.wanted.to(model.device)
                ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
                model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
                places += int(wanted.sum())
    finally:
        for handle in handles:
            handle.remove()
    return total / _some(places)


def _losses_without(model: Any, calibration: Sequence[Batch]) -> torch.Tensor:
    """(blocks,) cross-entropy on the answers of the model without each block."""
    layers = _blocks_of(model)
    losses = torch.zeros(len(layers), dtype=torch.float64)
    places = sum(int(batch.wanted.sum()) for batch in calibration)
    try:
        for left_out in range(len(layers)):
            model.base_model.layers = torch.nn.ModuleList(b for place, b in enumerate(layers) if place != left_out)
            losses[left_out] = sum(_loss(model, batch) for batch in calibration) / _some(places)
    finally:
        model.base_model.layers = layers
    return losses


@torch.inference_mode()
def _loss(model: Any, batch: Batch) -> float:
    ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0][batch.wanted.to(model.device)]
    logits = model.get_output_embeddings()(states).float()
    return float(torch.nn.functional.cross_entropy(logits, batch.targets.to(model.device), reduction="sum"))


def _some(places: int) -> int:
    if not places:
        raise UserError("drop_blocks has no calibration rows with answers", "see prototype/train.jsonl")
    return places


def _keep(places: Sequence[int], model: Any) -> None:
    """Leaves the blocks at these places; the configuration stays stock, and the cache's numbering contiguous."""
    layers = _blocks_of(model)
    model.base_model.layers = torch.nn.ModuleList([layers[place] for place in places])
    for place, layer in enumerate(model.base_model.layers):
        layer.self_attn.layer_idx = place
    configuration = model.config
    if getattr(configuration, "layer_types", None):
        configuration.layer_types = [configuration.layer_types[place] for place in places]
    configuration.num_hidden_layers = len(places)
    if hasattr(configuration, "max_window_layers"):
        configuration.max_window_layers = min(configuration.max_window_layers, len(places))
