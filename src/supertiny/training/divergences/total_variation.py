"""Half the sum of the differences of both probabilities: never above 1, and no token weighs more than its mass.

Paper: Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation, 2023, arXiv:2307.15190.
Use when: the teacher is noisy; after another divergence, since far from the teacher its slope is small.
Differs from the paper: token by token on the teacher's answers, not estimated on samples of whole sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TotalVariation:
    """0.5 * sum over the support of |p_teacher - p_student|."""

    def __call__(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        return 0.5 * (teacher.exp() - student.exp()).abs().sum(dim=-1)
