"""Forward KL, and a price on mass that the student gives where the teacher gives next to none (CKD).

Paper: STAR, ICLR 2026, arXiv:2602.03022.
Use when: reinforcement learning follows; the student keeps the teacher's spread without tokens of its own invention.
Differs from the paper: there, outside is what is among the student's 100 best tokens and not among the teacher's.
A divergence sees one support, so outside is what the teacher gives less than `floor`: mostly the bucket for the rest,
whose mass bounds that sum from above. The bucket is part of the KL, and only mass beyond the teacher's own is priced:
so agreement costs nothing and all else something, which holds for neither part of the paper's sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field


@dataclass(frozen=True)
class ConstrainedKL:
    """Forward KL + price * sum of max(0, p_student - p_teacher) where p_teacher < floor."""

    price: Annotated[float, Field(ge=0)] = 10.0
    """What a probability of 1 outside costs; the paper's lambda."""
    floor: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """Tokens to which the teacher gives less are outside."""

    def __call__(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        forward = (teacher.exp() * (teacher - student)).sum(dim=-1)
        excess = (student.exp() - teacher.exp()).clamp(min=0)
        return forward + self.price * (excess * (teacher < math.log(self.floor))).sum(dim=-1)
