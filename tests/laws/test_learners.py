"""What every learner obeys: the loss falls, same seed same weights, frozen stays frozen, can stop and go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from supertiny.core.errors import UserError
from supertiny.core.methods import build, cards
from supertiny.training.lessons import Lesson, encode_lessons
from supertiny.training.loop import Step
from supertiny.training.pupil import Pupil
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, same_weights, weights, write_student

LEARNERS = sorted(cards("learners"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Pupil:
    return open_pupil(write_student(tmp_path_factory.mktemp("teacher"), seed=9))


@pytest.fixture(scope="module")
def lessons(teacher: Pupil) -> list[Lesson]:
    return encode_lessons(examples("labelled", 6), build("formats", "compact"), small_task().tools, teacher.tokenizer)


def fit(
    name: str, pupil: Pupil, lessons: Sequence[Lesson], teacher: Pupil, *more: Any, seed: int = 3, **settings: Any
) -> Iterator[Step]:
    learner = build("learners", {"method": name, "rows": 2, "passes": 3, "learning_rate": 3e-3, **settings})
    needs_teacher = "live_teacher" in getattr(learner, "needs", ())
    return learner.fit(pupil, lessons, seed, *more, **({"teacher": teacher} if needs_teacher else {}))


@pytest.mark.parametrize("name", LEARNERS)
def test_loss_falls_on_one_small_batch(name: str, folder: Path, teacher: Pupil, lessons: list[Lesson]) -> None:
    steps = list(fit(name, open_pupil(folder), lessons[:2], teacher, passes=20))
    assert len(steps) == 20
    assert steps[-1].loss < 0.8 * steps[0].loss
    assert [step.step for step in steps] == list(range(1, 21))
    assert {step.of for step in steps} == {20}
    assert all(step.tokens == sum(len(lesson.ids) for lesson in lessons[:2]) for step in steps)


@pytest.mark.parametrize("name", LEARNERS)
def test_same_seed_same_weights_another_seed_others(
    name: str, folder: Path, teacher: Pupil, lessons: list[Lesson]
) -> None:
    taught = []
    for seed in (3, 3, 4):
        pupil = open_pupil(folder)
        list(fit(name, pupil, lessons, teacher, seed=seed))
        taught.append(weights(pupil))
    assert same_weights(taught[0], taught[1])
    assert not same_weights(taught[0], taught[2])


@pytest.mark.parametrize("name", LEARNERS)
def test_frozen_parts_stay_and_all_others_move(name: str, folder: Path, teacher: Pupil, lessons: list[Lesson]) -> None:
    pupil = open_pupil(folder)
    frozen = {key for key, _ in pupil.model.named_parameters() if "layers.0" in key}
    for key, parameter in pupil.model.named_parameters():
        parameter.requires_grad_(key not in frozen)
    before, taught_by = weights(pupil), weights(teacher)
    list(fit(name, pupil, lessons, teacher))
    after = dict(pupil.model.named_parameters())
    assert frozen
    assert {key for key in after if torch.equal(after[key], before[key])} == frozen
    assert same_weights(taught_by, weights(teacher))


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("stop_after", [1, 4, 5, 8])
def test_can_stop_and_go_on(
    name: str, stop_after: int, folder: Path, teacher: Pupil, lessons: list[Lesson], tmp_path: Path
) -> None:
    whole = open_pupil(folder)
    records = list(fit(name, whole, lessons, teacher))
    checkpoint = tmp_path / "learner.safetensors"
    stopped = open_pupil(folder)
    list(islice(fit(name, stopped, lessons, teacher, checkpoint, 2), stop_after))
    assert checkpoint.exists() == (stop_after > 2)
    resumed = open_pupil(folder)
    rest = list(fit(name, resumed, lessons, teacher, checkpoint, 2))
    # Saved after every second step, when the learner is asked for the next: at most two steps are done again.
    saved = (stop_after - 1) // 2 * 2
    assert [step.step for step in rest] == list(range(saved + 1, len(records) + 1))
    assert [step.loss for step in rest] == [step.loss for step in records[saved:]]
    assert same_weights(weights(whole), weights(resumed))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_loss_that_is_not_finite_is_told_and_the_checkpoint_stays(
    name: str, folder: Path, teacher: Pupil, lessons: list[Lesson], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "learner.safetensors"
    pupil = open_pupil(folder)
    steps = fit(name, pupil, lessons, teacher, checkpoint, 1)
    list(islice(steps, 3))
    saved = checkpoint.read_bytes()
    with torch.no_grad():
        pupil.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(UserError, match="step 4 of 9") as told:
        next(steps)
    assert "learning rate" in told.value.hint
    assert checkpoint.stat().st_size == len(saved)  # saved once more, after step 3, and never after that
    resumed, whole = open_pupil(folder), open_pupil(folder)
    rest = list(fit(name, resumed, lessons, teacher, checkpoint, 1))
    assert rest[0].step == 4
    list(fit(name, whole, lessons, teacher))
    assert same_weights(weights(whole), weights(resumed))
