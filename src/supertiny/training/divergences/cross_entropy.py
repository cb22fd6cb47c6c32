"""Surprise of the student at the teacher's most likely token: hard labels, for comparison.

Paper: Kim and Rush, Sequence-Level Knowledge Distillation, 2016, arXiv:1606.07947.
Use when: as the baseline of the other divergences, or where the teacher's probabilities are not to be trusted.
Differs from the paper: the teacher's best token at each place of the given answer, not a whole answer of its own.
Where the bucket for the rest outweighs every token it is the label, so keep the teacher's best tokens many.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CrossEntropy:
    """-log p_student of the teacher's best token; tokens that tie share the label.

    Zero where the student is sure of it; unlike the others not where both are equally unsure: it asks the student to be
    surer than its teacher.
    """

    def __call__(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        best = teacher == teacher.amax(dim=-1, keepdim=True)
        return -student.masked_fill(~best, 0.0).sum(dim=-1) / best.sum(dim=-1)
