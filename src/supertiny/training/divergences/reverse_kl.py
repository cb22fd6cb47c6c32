"""KL(student || teacher): the student keeps to what the teacher finds likely and may leave modes out.

Paper: Gu et al., MiniLLM, 2023, arXiv:2306.08543.
Use when: the student is much smaller than its teacher and should not spread itself thin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ReverseKL:
    """Sum over the support of p_student * (log p_student - log p_teacher)."""

    def __call__(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        return (student.exp() * (student - teacher)).sum(dim=-1)
