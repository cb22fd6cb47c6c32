"""An invertible bottleneck at the embedding: tokens get new vectors, no two of them the same; all else stays.

Paper: Gurgurov et al., Small Models, Big Impact, 2025, arXiv:2502.10140.
Use when: the domain's words are new and the grammar of what to do with them is not: another language, another jargon.
Differs from the paper: at the embedding alone, without bottlenecks in the layers; the head has no inverse but, where
it is tied, compares with the new vectors, so that all merges into the table of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.training.adapters._coupling import CoupledEmbedding, CoupledHead, Coupling


@dataclass(frozen=True)
class Invertible:
    """e1 + F(e2), then e2 + G(e1), F and G bottlenecks that are zero at the start."""

    reduction: Annotated[int, Field(ge=1)] = 16
    """How many times narrower than the embedding the bottleneck is."""

    def wrap(self, model: Any, seed: int) -> Any:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        model.requires_grad_(False)
        width = table.weight.shape[1]
        generator = torch.Generator().manual_seed(seed)
        coupled = CoupledEmbedding(
            table, Coupling(width, max(1, width // self.reduction), generator, like=table.weight)
        )
        model.set_input_embeddings(coupled)
        if head.weight is table.weight:
            model.set_output_embeddings(CoupledHead(head, coupled))
        return model

    def merge(self, model: Any) -> Any:
        coupled, head = model.get_input_embeddings(), model.get_output_embeddings()
        with torch.no_grad():
            coupled.frozen.weight.copy_(coupled.weight)
        model.set_input_embeddings(coupled.frozen)
        if isinstance(head, CoupledHead):
            model.set_output_embeddings(head.frozen)
        return model.requires_grad_(True)
