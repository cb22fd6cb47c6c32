"""Reinforcement's formulas against numbers counted by hand, and what it refuses to start on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.records import Example, Verdict
from supertiny.training.learners import _policy
from supertiny.training.learners._policy import PolicyLoss, Rules, Trials
from supertiny.training.lessons import Lesson, Trial, collate, encode_lessons
from supertiny.training.practice import Practice, Sample
from supertiny.training.pupil import Pupil
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, write_student

FORM = build("formats", "compact")
TASK = small_task()
RULES = Rules("exact", samples=4, temperature=1.0, redraws=2, kl=0.0, least_signal=0.05)


@pytest.fixture(scope="module")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> Pupil:
    return open_pupil(write_student(tmp_path_factory.mktemp("student")))


def rewarded(monkeypatch: pytest.MonkeyPatch, values: Sequence[Sequence[float]]) -> None:
    """Rewards that are told in turn, a request after the other."""
    left = [list(row) for row in values]

    class Told:
        def __call__(self, example: Example, samples: Sequence[Sample]) -> list[float]:
            return left.pop(0)

    monkeypatch.setattr(_policy, "build", lambda family, block: Told())


def trials(pupil: Pupil, rules: Rules = RULES, lessons: int = 6) -> Trials:
    practice = Practice(FORM, TASK.tools, TASK.verify, max_tokens=4)
    made = encode_lessons(examples("labelled", lessons), FORM, TASK.tools, pupil.tokenizer)
    return Trials(pupil, practice, rules, made, seed=1)


def test_advantages_are_rewards_less_their_mean_over_their_spread(
    pupil: Pupil, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewarded(monkeypatch, [[1.0, 0.0, 0.0, 0.0]])
    drawn = (one := trials(pupil)).drawn(one.asked[:1], step=0)
    spread = math.sqrt(3) / 4
    expected = [0.75 / (spread + 1e-4), *[-0.25 / (spread + 1e-4)] * 3]
    assert [trial.advantage for trial in drawn if isinstance(trial, Trial)] == pytest.approx(expected)
    assert one.told["reward"] == 0.25
    assert one.told["signal"] == 1.0


def test_requests_whose_answers_are_alike_are_replaced(pupil: Pupil, monkeypatch: pytest.MonkeyPatch) -> None:
    alike, mixed = [1.0] * 4, [1.0, 0.0, 1.0, 0.0]
    rewarded(monkeypatch, [alike, mixed, alike, mixed])
    one = trials(pupil)
    drawn = one.drawn(one.asked[:2], step=0)  # two, of which one is replaced, whose place is taken by another
    assert len(drawn) == 8
    assert one.told["signal"] == 2 / 4
    rewarded(monkeypatch, [alike] * 6)
    one = trials(pupil)
    assert one.drawn(one.asked[:2], step=0) == [], "nothing to learn from: the step is left out"


def test_without_signal_it_refuses_politely_before_the_first_step(
    pupil: Pupil, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, told, hint in ((1.0, "nearly all right", "leave this learner out"), (-1.0, "all wrong", "imitate")):
        rewarded(monkeypatch, [[value] * 4] * 6)
        with pytest.raises(UserError, match=told) as refused:
            trials(pupil).check_signal()
        assert "100% of 6 requests" in refused.value.problem
        assert hint in refused.value.hint
    rewarded(monkeypatch, [[1.0, 0.0, 0.0, 0.0]] * 6)
    trials(pupil).check_signal()


def test_lessons_without_a_trusted_answer_are_not_asked(pupil: Pupil) -> None:
    with pytest.raises(UserError, match="no lesson has an answer"):
        Trials(pupil, Practice(FORM, TASK.tools, TASK.verify), RULES, [Lesson((1, 2), 1)], seed=0)


def logits_of(ratios: Sequence[float], old: Sequence[float]) -> torch.Tensor:
    """Logits over two tokens whose first has the probability exp(old) * ratio."""
    shares = torch.tensor([math.exp(o) * r for o, r in zip(old, ratios, strict=True)], dtype=torch.float64)
    return torch.stack([shares.log(), (1 - shares).log()], dim=1).requires_grad_()


def batch_of(old: Sequence[float], advantage: float, reference: Sequence[float] = ()) -> _policy.Batch:
    row = Trial((1, *[0] * len(old)), 1, None, advantage, tuple(old), tuple(reference))
    return collate([row], pad=0)


def test_the_ratio_is_clipped_where_going_on_would_pay() -> None:
    loss = PolicyLoss(clip_low=0.2, clip_high=0.28, kl=0.0, on_policy=False)
    old = [math.log(0.5)] * 3
    logits = logits_of([1.5, 0.5, 1.0], old)
    better = loss(logits, batch_of(old, advantage=2.0))
    assert better.tolist() == pytest.approx([-1.28 * 2, -0.5 * 2, -2.0])
    (slope,) = torch.autograd.grad(better.sum(), logits)
    assert slope[0].abs().max() == 0, "far enough: nothing pulls it further"
    assert slope[1].abs().max() > 0
    worse = loss(logits_of([1.5, 0.5, 1.0], old), batch_of(old, advantage=-2.0))
    assert worse.tolist() == pytest.approx([1.5 * 2, 0.8 * 2, 2.0])


def test_one_update_a_draw_is_reinforce() -> None:
    loss = PolicyLoss(0.2, 0.28, 0.0, on_policy=True)
    logits = logits_of([0.3, 0.7], [0.0, 0.0])
    losses = loss(logits, batch_of([0.0, 0.0], advantage=1.5))
    assert losses.tolist() == pytest.approx([-1.5, -1.5])
    (slope,) = torch.autograd.grad(losses.sum(), logits)
    for row, share in zip(slope.tolist(), (0.3, 0.7), strict=True):
        assert row == pytest.approx([-1.5 * (1 - share), 1.5 * (1 - share)])


def test_the_pull_towards_the_reference_is_half_the_square_of_the_difference() -> None:
    loss = PolicyLoss(0.2, 0.28, kl=0.1, on_policy=True)
    logits = logits_of([0.5], [0.0])
    losses = loss(logits, batch_of([0.0], 0.0, reference=[math.log(0.25)]))
    assert losses.item() == pytest.approx(0.1 * 0.5 * math.log(2) ** 2)


def test_the_reference_stays_as_it_was(pupil: Pupil, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rewarded(monkeypatch, [[1.0, 0.0, 0.0, 0.0]] * 2)
    moving = open_pupil(write_student(tmp_path))
    rules = Rules("exact", 4, 1.0, 0, kl=0.1, least_signal=0.0)
    one = trials(moving, rules)
    (first, *_) = one.drawn(one.asked[:1], step=0)
    assert isinstance(first, Trial)
    assert first.reference == pytest.approx(first.old, abs=1e-4)
    with torch.no_grad():
        for weight in moving.model.parameters():
            weight.mul_(1.5)
    (other, *_) = one.drawn(one.asked[:1], step=1)
    assert isinstance(other, Trial)
    assert other.reference != pytest.approx(other.old, abs=1e-3)


def test_a_sample_of_nothing_is_no_answer() -> None:
    assert not Sample((2,), (0.0,), "", None, Verdict("fail")).readable
