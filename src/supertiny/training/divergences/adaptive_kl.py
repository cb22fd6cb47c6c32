"""Forward and reverse KL, mixed by where the student is further off: at the teacher's likely tokens or in its tail.

Paper: Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation, 2024, arXiv:2404.02657.
Use when: training is short; forward KL mends the likely tokens first, reverse KL the tail, and both are needed.
Differs from the paper: the bucket for the rest, where there is one, counts as one token of the tail or the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field


@dataclass(frozen=True)
class AdaptiveKL:
    """head_gap * forward KL + tail_gap * reverse KL; gaps are sums of |p_teacher - p_student|, scaled to a sum of 1."""

    head_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The head is the fewest likely tokens of the teacher that hold this share of its mass."""

    def __call__(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        forward = (teacher.exp() * (teacher - student)).sum(dim=-1)
        reverse = (student.exp() * (student - teacher)).sum(dim=-1)
        share = self._head_gap(teacher, student.detach())
        return share * forward + (1 - share) * reverse

    def _head_gap(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """(positions,) the head's share of the gap; the weights are no part of what is differentiated."""
        ordered, order = teacher.exp().sort(dim=-1, descending=True)
        in_head = ordered.cumsum(dim=-1) - ordered < self.head_share
        gaps = (ordered - student.exp().gather(-1, order)).abs()
        whole = gaps.sum(dim=-1)
        head = (gaps * in_head).sum(dim=-1)
        return torch.where(whole > 0, head / whole.clamp_min(torch.finfo(whole.dtype).tiny), 0.5)
