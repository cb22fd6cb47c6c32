"""Both sides on one support: the teacher's k best tokens plus one bucket."""

from __future__ import annotations

import torch

from supertiny.training.align import on_teacher_support
from supertiny.training.divergences.forward_kl import ForwardKL


def sides(positions: int = 4, vocabulary: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    teacher, student = (2 * torch.randn(positions, vocabulary, generator=generator) for _ in range(2))
    return teacher, student


def test_both_sides_sum_to_one_over_the_teachers_best_and_the_rest() -> None:
    teacher, student = sides()
    left, right = on_teacher_support(teacher, student, 6)
    assert left.shape == right.shape == (4, 7)
    for side in (left, right):
        torch.testing.assert_close(side.exp().sum(dim=-1), torch.ones(4))
    best = torch.log_softmax(teacher, dim=-1).topk(6, dim=-1)
    torch.testing.assert_close(left[:, :6], best.values)
    torch.testing.assert_close(right[:, :6], torch.log_softmax(student, dim=-1).gather(-1, best.indices))


def test_where_top_k_covers_the_vocabulary_there_is_no_rest() -> None:
    teacher, student = sides()
    left, right = on_teacher_support(teacher, student, 30)
    torch.testing.assert_close(left, torch.log_softmax(teacher, dim=-1))
    torch.testing.assert_close(right, torch.log_softmax(student, dim=-1))


def test_padded_vocabularies_are_cut_to_the_shorter() -> None:
    teacher, student = sides()
    padded = torch.cat([student, torch.full((4, 2), 50.0)], dim=-1)
    for top_k in (5, 100):
        for cut, whole in zip(
            on_teacher_support(teacher, padded, top_k), on_teacher_support(teacher, student, top_k), strict=True
        ):
            torch.testing.assert_close(cut, whole)


def test_temperature_softens_both_sides() -> None:
    teacher, student = sides()
    left, right = on_teacher_support(teacher, student, 30, temperature=4.0)
    torch.testing.assert_close(left, torch.log_softmax(teacher / 4, dim=-1))
    torch.testing.assert_close(right, torch.log_softmax(student / 4, dim=-1))


def test_a_student_that_is_too_sure_is_still_pushed_towards_the_rest() -> None:
    """Where the k best hold all of the student's mass, 1 - sum is rounding noise and its gradient vanishes."""
    teacher = torch.zeros(1, 8)
    teacher[0, 0] = 1.0  # the teacher has much mass on the rest
    student = torch.zeros(1, 8)
    student[0, 0] = 40.0
    student.requires_grad_()
    ForwardKL()(*on_teacher_support(teacher, student, 2)).sum().backward()
    assert student.grad is not None
    share = torch.softmax(teacher, dim=-1)
    best = teacher.topk(2, dim=-1).indices[0]
    rest = [place for place in range(8) if place not in best.tolist()]
    assert torch.allclose(student.grad[0, rest].sum(), -share[0, rest].sum(), atol=1e-4)
    assert torch.allclose(student.grad[0, 0], 1 - share[0, 0], atol=1e-4)
