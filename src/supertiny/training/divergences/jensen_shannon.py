"""Jensen-Shannon divergence: both sides against their mixture, bounded and with gentle gradients.

Paper: Agarwal et al., GKD, 2023, arXiv:2306.13649.
Use when: forward KL is unstable because the teacher gives tokens a probability near zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field


@dataclass(frozen=True)
class JensenShannon:
    """share * KL(teacher || mix) + (1 - share) * KL(student || mix), mix = share * teacher + (1 - share) * student."""

    teacher_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Weight of the teacher in the mixture, between 0 and 1."""

    def __call__(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        share = self.teacher_share
        mix = torch.logaddexp(teacher + math.log(share), student + math.log(1 - share))
        left = (teacher.exp() * (teacher - mix)).sum(dim=-1)
        right = (student.exp() * (student - mix)).sum(dim=-1)
        return share * left + (1 - share) * right
