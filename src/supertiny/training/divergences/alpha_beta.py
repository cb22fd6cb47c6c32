"""The alpha-beta divergence: from forward KL (1, 0) to reverse KL (0, 1), and what lies beside that line.

Paper: Wang et al., ABKD, 2025, arXiv:2505.04560.
Use when: forward KL spreads the student too thin and reverse KL makes it too sure; both numbers can be tuned apart.
Differs from the paper: both numbers are positive, as the limits at 0 are methods of their own; the defaults follow
its experiments with language models as far as known, and are to be tuned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field


@dataclass(frozen=True)
class AlphaBeta:
    """-1/(a b) * sum of p^a q^b - a/(a + b) p^(a + b) - b/(a + b) q^(a + b), p the teacher's, q the student's."""

    alpha: Annotated[float, Field(ge=0.01, le=2)] = 0.2
    """The smaller, the more weight is on tokens where the student is far off."""
    beta: Annotated[float, Field(ge=0.01, le=2)] = 0.7
    """The larger, the more weight is on tokens of which the student is sure."""

    def __call__(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        a, b, both = self.alpha, self.beta, self.alpha + self.beta
        # The larger power is taken out of each term: what is left is a difference of small numbers, not of powers,
        # and cannot overflow.
        below, above = (student - teacher).clamp(max=0), (teacher - student).clamp(max=0)
        likelier_to_teacher = (both * teacher).exp() * (b / both * (both * below).expm1() - (b * below).expm1())
        likelier_to_student = (both * student).exp() * (a / both * (both * above).expm1() - (a * above).expm1())
        terms = torch.where(student < teacher, likelier_to_teacher, likelier_to_student)
        return terms.sum(dim=-1) / (a * b)
