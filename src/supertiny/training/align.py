"""Brings teacher and student onto one support: the teacher's k best tokens plus one bucket for the rest, once."""

from __future__ import annotations

import torch


def on_teacher_support(
    teacher_logits: torch.Tensor, student_logits: torch.Tensor, top_k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of both, each (positions, top_k + 1), from logits (positions, vocabulary).

    Vocabularies padded to different sizes are cut to the shorter one. Where top_k covers the vocabulary there is no
    rest, and the support is the whole vocabulary.
    """
    size = min(teacher_logits.shape[-1], student_logits.shape[-1])
    teacher = torch.log_softmax(teacher_logits[..., :size] / temperature, dim=-1)
    student = torch.log_softmax(student_logits[..., :size] / temperature, dim=-1)
    if top_k >= size:
        return teacher, student
    ids = teacher.topk(top_k, dim=-1).indices
    return _with_rest(teacher, ids), _with_rest(student, ids)


def _with_rest(logprobs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    # The rest is summed, not taken as 1 - sum of the k best, which is rounding noise where those hold all the mass.
    rest = logprobs.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logprobs.gather(-1, ids), rest], dim=-1)
