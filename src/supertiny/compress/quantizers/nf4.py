"""Rounds to 16 levels that are quantiles of the normal distribution, times the largest weight of a block.

Paper: Dettmers et al., QLoRA, 2023, arXiv:2305.14314.
Use when: the weights go under an adapter, and the engine has bitsandbytes' levels.
Differs from the paper: scales are float16 in place of twice quantized ones: 4.25 bits a weight, not 4.127.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from supertiny.compress.inputs import Inputs
from supertiny.compress.packed import LEVELS, Packed, pack_bits
from supertiny.compress.quantizers._grids import halved, matrix_of


@dataclass(frozen=True)
class Nf4:
    """Bits per weight: 4 + 16 / group."""

    group: Annotated[int, Field(ge=0)] = 64
    """Neighbouring weights of a row that share a scale; must divide the row, 0 is the whole row."""

    def quantize(self, weight: torch.Tensor, inputs: Inputs | None) -> Packed:
        """Does not look at the inputs."""
        matrix, group = matrix_of(weight, self.group, "nf4")
        blocks = matrix.reshape(-1, group)
        scale = halved(blocks.abs().amax(dim=1, keepdim=True))
        levels = torch.tensor(LEVELS["nf4"], device=matrix.device)
        between = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(torch.where(scale > 0, blocks / scale, 0.0), between)
        height, width = weight.shape
        tensors = {"codes": pack_bits(codes, 4), "scales": scale.half().reshape(height, -1)}
        settings = {"table": "nf4", "group": group}
        return Packed("levels", (height, width), str(weight.dtype).removeprefix("torch."), settings, tensors)
