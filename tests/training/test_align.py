"""Both sides on one support: the teacher's k best tokens plus one bucket."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

from supertiny.core.methods import build, cards
from supertiny.training.align import common_cuts, compared, on_spans, on_stored_support, on_teacher_support
from supertiny.training.divergences.forward_kl import ForwardKL
from tests.tiny_student import SPECIAL, open_pupil, write_student
from tests.worded_student import worded_tokenizer


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


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    return open_pupil(write_student(tmp_path_factory.mktemp("student"))).tokenizer


def test_stored_scores_are_the_support_that_logits_give() -> None:
    teacher, student = sides()
    left, right = on_teacher_support(teacher, student, 6)
    ids = torch.log_softmax(teacher, dim=-1).topk(6, dim=-1).indices.int()
    told, own = on_stored_support(ids, left.half(), student)
    torch.testing.assert_close(told, left, atol=5e-3, rtol=0)
    torch.testing.assert_close(told.exp().sum(dim=-1), torch.ones(4))
    torch.testing.assert_close(own, right)


@pytest.mark.parametrize("name", sorted(cards("divergences")))
@pytest.mark.parametrize("lacking", [[0], [2, 5], [0, 1, 2, 3, 4, 5]])
def test_tokens_that_the_student_lacks_count_as_impossible(name: str, lacking: list[int]) -> None:
    teacher, student = sides()
    left, _ = on_teacher_support(teacher, student, 6)
    ids = teacher.topk(6, dim=-1).indices.int()
    ids[:, lacking] = -1
    student.requires_grad_()
    told, own = on_stored_support(ids, left, student)
    for side in (told, own):
        torch.testing.assert_close(side.exp().sum(dim=-1), torch.ones(4))
        assert (side[:, lacking] < -1000).all()
    kept = [place for place in range(6) if place not in lacking]
    torch.testing.assert_close(own[:, kept].exp(), student.softmax(-1).gather(-1, ids[:, kept].long()))
    apart = build("divergences", name)(told, own).sum()
    apart.backward()
    assert math.isfinite(apart.item())
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_tokenizers_are_the_same_padded_or_different(tokenizer: object) -> None:
    assert compared(tokenizer, copy.deepcopy(tokenizer)) == "same"
    more, others = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    more.add_special_tokens({"additional_special_tokens": ["<|tool|>", "<|think|>"]})  # type: ignore[attr-defined]
    others.add_special_tokens({"additional_special_tokens": ["<|think|>"]})  # type: ignore[attr-defined]
    assert compared(tokenizer, more) == compared(more, tokenizer) == "padded"
    assert compared(more, others) == "different"  # one special token has two ids
    assert compared(tokenizer, worded_tokenizer()) == compared(worded_tokenizer(), tokenizer) == "different"


TEXTS = ["TurnOn area=Kitchen", "x", "TurnOnTurnOn", "гг свет 灯 💡 г", " TurnOn \n\n en", "iten�it"]


@pytest.mark.parametrize("text", TEXTS)
def test_spans_end_at_the_same_character_of_both_and_are_the_smallest(tokenizer: object, text: str) -> None:
    other = worded_tokenizer()
    left, right = (one.encode(text, add_special_tokens=False) for one in (other, tokenizer))  # type: ignore
    cuts = common_cuts(other, left, tokenizer, right)
    assert cuts[-1] == (len(left), len(right))
    begun = [(other.decode(left[:a]), tokenizer.decode(right[:b])) for a, b in cuts]  # type: ignore[attr-defined]
    assert all(one == two for one, two in begun)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(cuts))
    # The tiny student's tokens are bytes: whatever ends a character for the other ends one for it.
    written = [other.decode(left[:a]) for a in range(1, len(left) + 1)]
    whole = {len(begun): a for a, begun in enumerate(written, 1) if text.startswith(begun)}
    assert [a for a, _ in cuts] == list(whole.values())


def test_spans_of_words_and_bytes(tokenizer: object) -> None:
    other = worded_tokenizer()
    ids = [one.encode("TurnOn it г", add_special_tokens=False) for one in (other, tokenizer)]  # type: ignore
    assert common_cuts(other, ids[0], tokenizer, ids[1]) == [(1, 6), (2, 7), (3, 9), (4, 10), (5, 12)]


def test_tokens_of_other_texts_have_no_cuts(tokenizer: object) -> None:
    other = worded_tokenizer()
    assert common_cuts(other, other.encode("TurnOn"), tokenizer, tokenizer.encode("TurnOff")) == []  # type: ignore
    assert common_cuts(other, [], tokenizer, tokenizer.encode("x")) == []  # type: ignore[attr-defined]
    assert common_cuts(other, [], tokenizer, []) == []


def test_what_ends_an_answer_differs_by_name(tokenizer: object) -> None:
    other = worded_tokenizer((*SPECIAL[:2], "</s>"))
    left, right = other.encode("it</s>"), tokenizer.encode("it<|im_end|>")  # type: ignore[attr-defined]
    assert common_cuts(other, left, tokenizer, right) == []
    assert common_cuts(other, left[:-1], tokenizer, right[:-1]) == [(1, 2)]


def test_a_span_has_the_product_of_its_tokens_and_all_else_the_rest() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    targets = torch.tensor([3, 1, 8, 0])
    own = logits.softmax(-1).gather(-1, targets[:, None])[:, 0]
    spans = torch.tensor([[0, -1, -1], [1, 2, 3]])
    teacher = torch.tensor([-0.1, -2.0])
    told, found = on_spans(spans, teacher, logits, targets)
    whole = torch.stack([own[0], own[1] * own[2] * own[3]])
    torch.testing.assert_close(found.exp(), torch.stack([whole, 1 - whole], dim=-1))
    torch.testing.assert_close(told[:, 0].float(), teacher)
    torch.testing.assert_close(told.exp().sum(dim=-1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name", sorted(cards("divergences")))
@pytest.mark.parametrize("height", [0.0, 30.0, 1e4, -1e4])
def test_spans_have_finite_slopes_at_extremes(name: str, height: float) -> None:
    logits = torch.zeros(3, 9)
    logits[:, 4] = height
    logits.requires_grad_()
    for sure in (0.0, -1e-9, -0.7, -1e4):
        told, found = on_spans(torch.tensor([[0, 1], [2, -1]]), torch.full((2,), sure), logits, torch.full((3,), 4))
        apart = build("divergences", name)(told, found).sum()
        (slope,) = torch.autograd.grad(apart, logits)
        assert math.isfinite(apart.item())
        assert apart >= -1e-6
        assert torch.isfinite(slope).all()


def test_a_student_that_is_too_sure_of_a_span_is_still_pushed_off_it() -> None:
    logits = torch.zeros(1, 8)
    logits[0, 0] = 40.0
    logits.requires_grad_()
    told, found = on_spans(torch.tensor([[0]]), torch.tensor([math.log(0.25)]), logits, torch.tensor([0]))
    ForwardKL()(told, found).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].item() == pytest.approx(0.75, abs=1e-4)
