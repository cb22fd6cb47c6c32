"""The schedule of gradient descent, and what it does where memory or the loss does not hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.training.learners._aligned import Aligned
from supertiny.training.lessons import Batch, Lesson
from supertiny.training.loop import Plan, Step, descend, learning_rate_at, turns
from supertiny.training.pupil import Pupil
from tests.tiny_student import open_pupil, same_weights, weights, write_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


def some_lessons(count: int = 6, length: int = 10) -> list[Lesson]:
    return [Lesson(tuple((7 * row + 3 * place) % 200 + 5 for place in range(length + row)), 4) for row in range(count)]


def a_plan(**more: object) -> Plan:
    known = {"learning_rate": 1e-3, "passes": 2, "rows": 6, "seed": 1}
    return Plan(**{**known, **more})  # type: ignore[arg-type]


def taught(
    folder: Path, plan: Plan, loss_of: Callable[[Pupil], Callable[[Batch], torch.Tensor]]
) -> tuple[list[Step], Pupil]:
    pupil = open_pupil(folder)
    return list(descend(pupil, some_lessons(), plan, loss_of(pupil))), pupil


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    plan = Plan(1e-3, passes=1, rows=1, warmup_share=0.1, final_share=0.05)
    rates = [learning_rate_at(step, 100, plan) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(1e-3)
    assert rates[55] == pytest.approx(1e-3 * (0.05 + 0.95 / 2))
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 5e-5 < rates[-1] < 5.4e-5
    assert learning_rate_at(0, 1, plan) == 1e-3


def test_turns_that_begin_later_are_the_rest_of_the_whole() -> None:
    lessons, plan = some_lessons(), a_plan(rows=4, passes=3)
    whole = list(turns(lessons, plan))
    assert [step for step, _, _ in whole] == list(range(6))
    for first in range(6):
        assert list(turns(lessons, plan, first)) == whole[first:]


def test_a_batch_that_does_not_fit_is_halved_and_the_gradients_are_the_same(folder: Path) -> None:
    """The allocator's word is what torch says on a CPU; from three rows on it refuses."""
    seen: list[int] = []
    notes: list[str] = []

    def narrow(pupil: Pupil) -> Callable[[Batch], torch.Tensor]:
        pupil.note = notes.append

        def loss_of(batch: Batch) -> torch.Tensor:
            if len(batch.rows) > 2:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
            seen.append(len(batch.rows))
            return pupil.answer_loss(batch)

        return loss_of

    wide_steps, wide = taught(folder, a_plan(), lambda pupil: pupil.answer_loss)
    steps, pupil = taught(folder, a_plan(), narrow)
    assert seen == [1, 1, 1, 1, 1, 1] * 2
    assert [note.strip() for note in notes] == [
        "6 rows do not fit in memory: 3 at a time, gradients added up",
        "6 rows do not fit in memory: 1 at a time, gradients added up",
    ]
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in wide_steps], rel=1e-5)
    assert [s.gradient_norm for s in steps] == pytest.approx([s.gradient_norm for s in wide_steps], rel=1e-4)
    for name, weight in weights(pupil).items():
        torch.testing.assert_close(weight, weights(wide)[name], rtol=1e-3, atol=2e-4)


def test_memory_that_runs_out_half_way_leaves_no_gradient_behind(folder: Path) -> None:
    def once(pupil: Pupil) -> Callable[[Batch], torch.Tensor]:
        calls: list[int] = []

        def loss_of(batch: Batch) -> torch.Tensor:
            calls.append(len(batch.rows))
            if len(calls) == 3:  # after the first half of a halved batch has left its gradient
                raise torch.OutOfMemoryError("out of memory")
            if len(calls) == 1:
                raise torch.OutOfMemoryError("out of memory")
            return pupil.answer_loss(batch)

        return loss_of

    plain, _ = taught(folder, a_plan(passes=1), lambda pupil: pupil.answer_loss)
    steps, _ = taught(folder, a_plan(passes=1), once)
    assert steps[0].gradient_norm == pytest.approx(plain[0].gradient_norm, rel=1e-4)


def test_a_single_row_that_does_not_fit_is_told(folder: Path) -> None:
    def never(batch: Batch) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(UserError, match="a single row of 15 tokens does not fit"):
        taught(folder, a_plan(), lambda pupil: never)


def test_another_fault_is_not_taken_for_a_lack_of_memory(folder: Path) -> None:
    def broken(batch: Batch) -> torch.Tensor:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        taught(folder, a_plan(), lambda pupil: broken)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_says_where(value: float, folder: Path) -> None:
    pupil = open_pupil(folder)
    steps = descend(pupil, some_lessons(), a_plan(passes=5), lambda batch: pupil.answer_loss(batch) * factor[0])
    factor = [1.0]
    next(steps)
    next(steps)
    before = weights(pupil)
    factor[0] = value
    with pytest.raises(UserError, match="step 3 of 5") as told:
        next(steps)
    assert told.value.hint == "lower the learning rate"
    assert same_weights(weights(pupil), before)


def test_a_loss_that_goes_up_for_good_stops(folder: Path, tmp_path: Path) -> None:
    pupil = open_pupil(folder)
    count = iter(range(1000))
    rising = descend(
        pupil,
        some_lessons(),
        a_plan(passes=60, learning_rate=0.0),
        lambda batch: pupil.answer_loss(batch) + 0.5 * next(count),
        tmp_path / "checkpoint.safetensors",
        5,
    )
    with pytest.raises(UserError, match="the loss went up from") as told:
        list(rising)
    assert "the last good checkpoint stays" in told.value.hint
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_nothing_to_learn_from_is_told(folder: Path) -> None:
    pupil = open_pupil(folder)
    with pytest.raises(UserError, match="nothing to learn from"):
        next(descend(pupil, [], a_plan(), pupil.answer_loss))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 2}, r"seed 1 \(now 2\)"), ({"learning_rate": 9.0}, r"learning_rate 0.001 \(now 9.0\)")],
)
def test_a_resume_with_changed_settings_is_refused(
    change: dict[str, float], named: str, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "checkpoint.safetensors"

    def begun(settings: dict[str, float], lessons: list[Lesson]) -> None:
        pupil = open_pupil(folder)
        plan = a_plan(passes=4, **settings)
        plan = Plan(
            plan.learning_rate, 4, 6, int(plan.seed), settings={"seed": plan.seed, "learning_rate": plan.learning_rate}
        )
        steps = descend(pupil, lessons, plan, pupil.answer_loss, place, 1)
        for _ in range(2):
            next(steps)

    begun({}, some_lessons())
    with pytest.raises(UserError, match=named):
        begun(change, some_lessons())
    with pytest.raises(UserError, match="lessons"):
        begun({}, some_lessons(5))
    begun({}, some_lessons())


def test_bfloat16_is_taught_the_same_again_and_after_a_stop(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint.safetensors"

    def begun(checkpoint: Path | None, stop_after: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        pupil = Pupil.open(folder, "bfloat16")
        steps = descend(pupil, some_lessons(), a_plan(passes=6, rows=3), pupil.answer_loss, checkpoint, 2)
        losses = [step.loss for step, _ in zip(steps, range(stop_after), strict=False)]
        return losses, weights(pupil)

    losses, whole = begun(None, 100)
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert same_weights(begun(None, 100)[1], whole)
    begun(place, 5)
    rest, resumed = begun(place, 100)
    assert rest == losses[4:]
    assert same_weights(resumed, whole)


def test_what_is_dropped_is_by_the_seed_and_the_step(folder: Path, tmp_path: Path) -> None:
    """Dropout draws from torch's global generator, whatever state that is in: it stays as it was."""
    place = tmp_path / "checkpoint.safetensors"

    def begun(
        noise: int, dropout: float = 0.1, checkpoint: Path | None = None, stop_after: int = 100, seed: int = 1
    ) -> Any:
        pupil = open_pupil(folder)
        pupil.model = build("adapters", {"method": "lora", "rank": 2, "dropout": dropout}).wrap(pupil.model, 0)
        torch.manual_seed(noise)
        steps = descend(pupil, some_lessons(), a_plan(rows=3, seed=seed, updates=2), pupil.answer_loss, checkpoint, 1)
        list(islice(steps, stop_after))
        drawn = torch.rand(())
        torch.manual_seed(noise)
        assert torch.equal(drawn, torch.rand(()))
        return weights(pupil)

    whole = begun(1)
    assert same_weights(begun(2), whole)
    assert not same_weights(begun(1, seed=2), whole)
    assert not same_weights(begun(1, dropout=0.0), whole)
    begun(3, checkpoint=place, stop_after=3)
    assert place.exists()
    assert same_weights(begun(4, checkpoint=place), whole)


def test_a_mover_towards_earlier_weights_keeps_what_modules_count(folder: Path) -> None:
    def mover(opened: float) -> Aligned:
        pupil = open_pupil(folder)
        pupil.model.register_buffer("opened", torch.tensor(opened))
        pupil.model.learned_buffers = ("opened",)
        return Aligned(pupil, a_plan(), pupil.answer_loss, 2, 0.5)

    saved = mover(3.0).tensors()
    again = mover(0.0)
    again.take(saved, 1)
    assert float(again.model.opened) == 3.0
