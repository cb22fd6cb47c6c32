"""KL(teacher || a mix of teacher and student): where the student is sure of nothing, its gradient stays bounded.

Paper: Ko et al., DistiLLM, 2024, arXiv:2402.03898.
Use when: forward KL blows up early in training, or the student starts far from the teacher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field


@dataclass(frozen=True)
class SkewedKL:
    """Sum of p_teacher * (log p_teacher - log mix), mix = teacher_share * p_teacher + (1 - teacher_share) * p_student.

    Never above -log(teacher_share).
    """

    teacher_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Weight of the teacher in the mixture, between 0 and 1; the paper's 0.1 is near forward KL."""

    def __call__(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        mix = torch.logaddexp(teacher + math.log(self.teacher_share), student + math.log(1 - self.teacher_share))
        return (teacher.exp() * (teacher - mix)).sum(dim=-1)
