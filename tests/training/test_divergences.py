"""Each paper's claim in small."""

from __future__ import annotations

import math

import pytest
import torch

from supertiny.core.methods import build


def sides(*probabilities: tuple[float, ...]) -> list[torch.Tensor]:
    return [torch.tensor([row], dtype=torch.float64).log() for row in probabilities]


def slope(name: str, teacher: torch.Tensor, logits: torch.Tensor, **settings: float) -> torch.Tensor:
    """Gradient by the student's logits."""
    logits = logits.clone().requires_grad_()
    build("divergences", {"method": name, **settings})(teacher, torch.log_softmax(logits, dim=-1)).sum().backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_skewed_kl_is_bounded_where_forward_kl_is_not(share: float) -> None:
    teacher, student = sides((1 - 1e-12, 1e-12), (1e-12, 1 - 1e-12))
    assert build("divergences", "forward_kl")(teacher, student).item() > 20
    skewed = build("divergences", {"method": "skewed_kl", "teacher_share": share})(teacher, student).item()
    assert skewed == pytest.approx(-math.log(share), rel=1e-6)


def test_skewed_kl_tends_to_forward_kl() -> None:
    teacher, student = sides((0.7, 0.2, 0.1), (0.2, 0.3, 0.5))
    skewed = build("divergences", {"method": "skewed_kl", "teacher_share": 1e-6})
    assert skewed(teacher, student).item() == pytest.approx(
        build("divergences", "forward_kl")(teacher, student).item(), rel=1e-4
    )


def test_adaptive_kl_is_forward_at_the_head_and_reverse_in_the_tail() -> None:
    teacher, head_off, tail_off = sides((0.5, 0.3, 0.2), (0.1, 0.54, 0.36), (0.5, 0.1, 0.4))
    forward, reverse, adaptive = (build("divergences", name) for name in ("forward_kl", "reverse_kl", "adaptive_kl"))
    assert adaptive(teacher, tail_off).item() == pytest.approx(reverse(teacher, tail_off).item())
    share = 0.4 / 0.8
    expected = share * forward(teacher, head_off) + (1 - share) * reverse(teacher, head_off)
    assert adaptive(teacher, head_off).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("head_share", [0.1, 0.5, 0.79, 0.81])
def test_the_head_is_the_fewest_tokens_that_hold_its_share(head_share: float) -> None:
    teacher, student = sides((0.3, 0.5, 0.2), (0.5, 0.1, 0.4))
    places = {0.1: [1], 0.5: [1], 0.79: [1, 0], 0.81: [1, 0, 2]}[head_share]
    gaps = (0.2, 0.4, 0.2)
    share = sum(gaps[place] for place in places) / sum(gaps)
    forward, reverse = (build("divergences", name)(teacher, student).item() for name in ("forward_kl", "reverse_kl"))
    method = build("divergences", {"method": "adaptive_kl", "head_share": head_share})
    assert method(teacher, student).item() == pytest.approx(share * forward + (1 - share) * reverse)


@pytest.mark.parametrize(("alpha", "beta", "limit"), [(1.0, 0.01, "forward_kl"), (0.01, 1.0, "reverse_kl")])
def test_alpha_beta_tends_to_both_kl(alpha: float, beta: float, limit: str) -> None:
    teacher, student = sides((0.7, 0.2, 0.1), (0.2, 0.3, 0.5))
    found = build("divergences", {"method": "alpha_beta", "alpha": alpha, "beta": beta})(teacher, student).item()
    assert found == pytest.approx(build("divergences", limit)(teacher, student).item(), rel=0.02)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.7), (0.5, 0.5), (1.0, 0.3), (2.0, 2.0)])
def test_alpha_beta_is_its_formula(alpha: float, beta: float) -> None:
    teacher, student = sides((0.7, 0.2, 0.1), (0.2, 0.3, 0.5))
    p, q, both = teacher.exp(), student.exp(), alpha + beta
    terms = p**alpha * q**beta - alpha / both * p**both - beta / both * q**both
    expected = -terms.sum().item() / (alpha * beta)
    found = build("divergences", {"method": "alpha_beta", "alpha": alpha, "beta": beta})(teacher, student).item()
    assert found == pytest.approx(expected)


def test_constrained_kl_pushes_down_what_the_teacher_rules_out_harder_than_forward_kl() -> None:
    """And leaves the student alone where it only spreads more within what the teacher allows."""
    (teacher,) = sides((0.6, 0.3999, 0.0001))
    logits = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64)
    plain, priced = slope("forward_kl", teacher, logits), slope("constrained_kl", teacher, logits)
    assert priced[0, 2] > 5 * plain[0, 2] > 0
    within = torch.tensor([[1.0, 2.0, -9.0]], dtype=torch.float64)
    torch.testing.assert_close(slope("forward_kl", teacher, within), slope("constrained_kl", teacher, within))
    free = slope("constrained_kl", teacher, logits, price=0.0)
    torch.testing.assert_close(free, plain)


def test_the_slope_of_constrained_kl_is_bounded_where_that_of_reverse_kl_is_not() -> None:
    (teacher,) = sides((1 - 1e-300, 1e-300))
    logits = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    assert slope("reverse_kl", teacher, logits).abs().max() > 100
    assert slope("constrained_kl", teacher, logits).abs().max() < 4


def test_total_variation_is_never_above_one() -> None:
    teacher, student = sides((1 - 1e-12, 1e-12), (1e-12, 1 - 1e-12))
    assert build("divergences", "total_variation")(teacher, student).item() == pytest.approx(1)


def test_cross_entropy_sharpens_and_shares_the_label_among_ties() -> None:
    teacher, student = sides((0.4, 0.4, 0.2), (0.5, 0.25, 0.25))
    value = build("divergences", "cross_entropy")(teacher, student).item()
    assert value == pytest.approx((math.log(2) + math.log(4)) / 2)
    (teacher,) = sides((0.6, 0.4))
    assert slope("cross_entropy", teacher, teacher)[0, 0] < -0.3  # where both agree, it still asks for more
