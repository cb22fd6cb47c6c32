"""What every divergence obeys: zero at equality, positive otherwise, finite gradients, no order of the support."""

from __future__ import annotations

import math

import pytest
import torch

from supertiny.core.methods import build, cards
from supertiny.training.align import on_teacher_support

DIVERGENCES = sorted(cards("divergences"))
# Hard labels ask the student to be surer than its teacher; what they obey instead stands in the test that names them.
HARD = {"cross_entropy"}
SOFT = sorted(set(DIVERGENCES) - HARD)
EXTREMES = [(1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (1e4, 0.0), (0.0, 1e4)]


def logprobs(seed: int, positions: int = 7, support: int = 11, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(3 * torch.randn(positions, support, generator=generator, dtype=dtype), dim=-1)


def peaked(height: float, place: int, positions: int = 5, vocabulary: int = 20) -> torch.Tensor:
    logits = torch.zeros(positions, vocabulary)
    logits[:, place] = height
    return logits


@pytest.mark.parametrize("name", DIVERGENCES)
def test_one_number_per_position(name: str) -> None:
    apart = build("divergences", name)(logprobs(1), logprobs(2))
    assert apart.shape == (7,)
    assert build("divergences", name)(logprobs(1, 1, 2), logprobs(2, 1, 2)).shape == (1,)


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_zero_at_equality(name: str, scale: float) -> None:
    divergence = build("divergences", name)
    same = torch.log_softmax(logprobs(1) * scale, dim=-1)
    assert divergence(same, same.clone()).abs().max() < 1e-6
    generator = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(7, 50, generator=generator)
    for top_k in (4, 50, 500):
        assert divergence(*on_teacher_support(logits, logits.clone(), top_k)).abs().max() < 1e-6


@pytest.mark.parametrize("name", SOFT)
def test_positive_otherwise(name: str) -> None:
    divergence = build("divergences", name)
    for seed in range(20):
        teacher, student = logprobs(seed, dtype=torch.float64), logprobs(seed + 100, dtype=torch.float64)
        assert (divergence(teacher, student) > 1e-3).all()
        near = torch.log_softmax(teacher + 0.05 * student, dim=-1)
        assert (divergence(teacher, near) > 0).all()
        assert (divergence(teacher, near) < divergence(teacher, student)).all()


@pytest.mark.parametrize("name", sorted(HARD))
def test_hard_labels_are_least_where_the_student_is_sure_of_the_teachers_best_token(name: str) -> None:
    divergence = build("divergences", name)
    for seed in range(20):
        teacher, student = logprobs(seed, dtype=torch.float64), logprobs(seed + 100, dtype=torch.float64)
        sure = torch.log_softmax(1e4 * teacher, dim=-1)
        assert divergence(teacher, sure).abs().max() < 1e-6
        assert (divergence(teacher, student) > 1e-3).all()
        assert (divergence(teacher, teacher) > 0).all()  # the exception: both agree, and it is not zero
        torch.testing.assert_close(divergence(sure, student), divergence(teacher, student))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("top_k", [1, 3, 20])
def test_finite_gradient_at_extreme_logits(name: str, extreme: tuple[float, float], top_k: int) -> None:
    for place in (0, 1):  # both sides sure of the same token, and of different ones
        teacher, student = peaked(extreme[0], 0), peaked(extreme[1], place).requires_grad_()
        apart = build("divergences", name)(*on_teacher_support(teacher, student, top_k))
        apart.mean().backward()
        assert torch.isfinite(apart).all()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
        assert (apart >= -1e-6).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_step_down_the_gradient_comes_nearer(name: str) -> None:
    divergence = build("divergences", name)
    generator = torch.Generator().manual_seed(5)
    teacher = 2 * torch.randn(6, 30, generator=generator)
    student = (2 * torch.randn(6, 30, generator=generator)).requires_grad_()
    before = divergence(*on_teacher_support(teacher, student, 8)).sum()
    (slope,) = torch.autograd.grad(before, student)
    after = divergence(*on_teacher_support(teacher, student - 0.1 * slope, 8)).sum()
    assert after < before


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_order_of_the_support_changes_nothing(name: str) -> None:
    divergence = build("divergences", name)
    teacher, student = logprobs(1, dtype=torch.float64), logprobs(2, dtype=torch.float64)
    order = torch.randperm(teacher.shape[-1], generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(divergence(teacher[:, order], student[:, order]), divergence(teacher, student))
    logits = [torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) for seed in (8, 9)]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    plain = divergence(*on_teacher_support(*logits, 5))
    torch.testing.assert_close(divergence(*on_teacher_support(*(side[:, order] for side in logits), 5)), plain)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_order_of_tokens_that_tie_changes_nothing(name: str) -> None:
    divergence = build("divergences", name)
    teacher = torch.tensor([[0.3, 0.3, 0.3, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.1, 0.5, 0.3, 0.1]], dtype=torch.float64).log()
    swapped = student[:, [1, 2, 0, 3]]
    if name != "adaptive_kl":  # which of the tied tokens are its head is not said by the paper either
        torch.testing.assert_close(divergence(teacher, swapped), divergence(teacher, student))


TEACHER = (0.5, 0.3, 0.1995, 0.0005)
STUDENT = (0.25, 0.25, 0.25, 0.25)
FORWARD = sum(p * math.log(p / q) for p, q in zip(TEACHER, STUDENT, strict=True))
REVERSE = sum(q * math.log(q / p) for p, q in zip(TEACHER, STUDENT, strict=True))
KNOWN = {
    "forward_kl": (FORWARD, {}),
    "reverse_kl": (REVERSE, {}),
    "total_variation": (0.3, {}),
    "cross_entropy": (math.log(4), {}),
    "skewed_kl": (sum(p * math.log(p / (0.1 * p + 0.9 * 0.25)) for p in TEACHER), {}),
    # The head is the first token: off by 0.25 of 0.6 in all.
    "adaptive_kl": (0.25 / 0.6 * FORWARD + 0.35 / 0.6 * REVERSE, {}),
    "constrained_kl": (FORWARD + 10 * (0.25 - 0.0005), {}),
    # With a = b = 1 it is half the squared distance.
    "alpha_beta": (0.5 * sum((p - 0.25) ** 2 for p in TEACHER), {"alpha": 1, "beta": 1}),
}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_values_by_hand(name: str) -> None:
    teacher, student = (torch.tensor([side], dtype=torch.float64).log() for side in (TEACHER, STUDENT))
    value, settings = KNOWN[name]
    assert build("divergences", {"method": name, **settings})(teacher, student).item() == pytest.approx(value)


def test_known_values() -> None:
    teacher = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    forward = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    reverse = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert build("divergences", "forward_kl")(teacher, student).item() == pytest.approx(forward)
    assert build("divergences", "reverse_kl")(teacher, student).item() == pytest.approx(reverse)
    mix = [0.375, 0.625]
    left = 0.5 * math.log(0.5 / mix[0]) + 0.5 * math.log(0.5 / mix[1])
    right = 0.25 * math.log(0.25 / mix[0]) + 0.75 * math.log(0.75 / mix[1])
    half = build("divergences", "jensen_shannon")(teacher, student).item()
    assert half == pytest.approx(0.5 * left + 0.5 * right)
    assert half <= math.log(2)
