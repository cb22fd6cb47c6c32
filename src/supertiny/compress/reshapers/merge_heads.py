"""Merges neighbouring key-value heads into their mean: fewer of them serve the same query heads.

Paper: Ainslie et al., GQA, 2023, arXiv:2305.13245; how few are worth it: Cost-Optimal GQA, 2025, arXiv:2503.09579.
Use when: long prompts make the key-value cache what costs; it shrinks by the share, the weights only a little.
Differs from the paper: the training that brings quality back is the stage's recovery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.compress.reshapers._cutting import blocks_of, change, head_counts
from supertiny.core.errors import UserError


@dataclass(frozen=True)
class MergeHeads:
    """Exact where the heads that are merged are equal; query heads stay as they are."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the key-value heads that goes; what stays must divide what was there."""

    def reshape(self, model: Any, calibration: Sequence[Any]) -> Any:
        """The model with fewer key-value heads. Raises UserError where their number cannot be divided so."""
        layers = blocks_of(model, "merge_heads")
        groups = head_counts(model)[1]
        left = round(groups * (1 - self.share))
        possible = [count for count in range(1, groups) if groups % count == 0]
        if left not in possible:
            shares = ", ".join(f"{1 - count / groups:.3f}" for count in possible)
            raise UserError(
                f"merge_heads: {groups} key-value heads cannot be merged into {left}",
                f"shares that work: {shares}" if possible else "it has one, and no fewer are possible",
            )
        for block in layers:
            for part in (block.self_attn.k_proj, block.self_attn.v_proj):
                change(part, rows=lambda tensor: _merged(tensor, groups, left))
            block.self_attn.num_key_value_groups *= groups // left
        model.config.num_key_value_heads = left
        return model


def _merged(rows: torch.Tensor, groups: int, left: int) -> torch.Tensor:
    """(groups * head width, ...) to (left * head width, ...); in float32, as bfloat16 would round each sum."""
    return rows.float().reshape(left, groups // left, -1, *rows.shape[1:]).mean(1).flatten(0, 1)
