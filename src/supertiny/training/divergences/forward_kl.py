"""KL(teacher || student): the student must cover all that the teacher finds likely.

Paper: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
Use when: first choice, when teacher and student are near in size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ForwardKL:
    """Sum over the support of p_teacher * (log p_teacher - log p_student)."""

    def __call__(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        return (teacher.exp() * (teacher - student)).sum(dim=-1)
