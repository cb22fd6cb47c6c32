"""What every learner obeys: the loss falls, same seed same weights, frozen stays frozen, can stop and go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from supertiny.core.errors import UserError
from supertiny.core.methods import build, cards
from supertiny.core.records import Example
from supertiny.training.learners import _policy
from supertiny.training.lessons import Lesson, encode_lessons, encode_prompts
from supertiny.training.loop import Step
from supertiny.training.practice import Practice, Sample
from supertiny.training.pupil import Pupil
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, same_weights, weights, write_student

LEARNERS = sorted(cards("learners"))
# What random weights need to have something to learn from.
OWN: dict[str, dict[str, Any]] = {
    "reinforce": {"samples": 4, "least_signal": 0.0, "redraws": 0},
    "hybrid": {"samples": 4, "asked": 2},
    "reject": {"samples": 2},
}
LONG: dict[str, dict[str, Any]] = {
    "zeroth_order": {"directions": 8, "learning_rate": 2e-2, "clip": 10.0},
    "reinforce": {"samples": 32, "learning_rate": 1e-2},
    "hybrid": {"samples": 32, "learning_rate": 1e-2, "policy_share_first": 1.0, "policy_share_last": 1.0},
}
FALL: dict[str, float] = {"zeroth_order": 0.85}  # it sees one direction in a million


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Pupil:
    return open_pupil(write_student(tmp_path_factory.mktemp("teacher"), seed=9))


@pytest.fixture(scope="module")
def lessons(teacher: Pupil) -> list[Lesson]:
    return encode_lessons(examples("labelled", 6), build("formats", "compact"), small_task().tools, teacher.tokenizer)


class EvenTokens:
    """A reward that answers of random weights differ in: the share of tokens with an even number."""

    def __call__(self, example: Example, samples: Sequence[Sample]) -> list[float]:
        return [2 * sum(token % 2 == 0 for token in sample.ids) / len(sample.ids) - 1 for sample in samples]


@pytest.fixture(autouse=True)
def reward_of_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_policy, "build", lambda family, block: EvenTokens())


def practice_of(pupil: Pupil) -> Practice:
    task, form = small_task(), build("formats", "compact")
    prompts = encode_prompts(examples("unlabelled", 2), form, task.tools, pupil.tokenizer)
    return Practice(form, task.tools, task.verify, prompts, max_tokens=8)


def needs_of(name: str) -> set[str]:
    learner = cards("learners")[name].load()
    return {word for need in getattr(learner, "needs", ()) for word in need.split("|")}


def has(name: str, setting: str) -> bool:
    return setting in {field.name for field in fields(cards("learners")[name].load())}


def fit(
    name: str, pupil: Pupil, lessons: Sequence[Lesson], teacher: Pupil, *more: Any, seed: int = 3, **settings: Any
) -> Iterator[Step]:
    chosen = {"method": name, "rows": 2, "passes": 3, "learning_rate": 3e-3, **OWN.get(name, {}), **settings}
    supplied: dict[str, Any] = {"teacher": teacher} if "live_teacher" in needs_of(name) else {}
    if "practice" in needs_of(name):
        supplied["practice"] = practice_of(pupil)
    return build("learners", chosen).fit(pupil, lessons, seed, *more, **supplied)


@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns_one_small_batch(name: str, folder: Path, teacher: Pupil, lessons: list[Lesson]) -> None:
    """The loss falls; where answers are rewarded, the reward rises instead, since a policy's loss says nothing."""
    steps = list(fit(name, open_pupil(folder), lessons[:2], teacher, passes=20, **LONG.get(name, {})))
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert {step.of for step in steps} == {len(steps)}
    assert len(steps) == 20 if not practice_rows(name) else len(steps) >= 20
    first, last = steps[: len(steps) // 4], steps[-len(steps) // 4 :]
    if has(name, "reward"):
        mean = [sum(step.more["reward"] for step in part) / len(part) for part in (first, last)]
        assert mean[1] > mean[0] + 0.1
    else:
        mean = [sum(step.loss for step in part) / len(part) for part in (first, last)]
        assert mean[1] < FALL.get(name, 0.8) * mean[0]
    if "practice" not in needs_of(name):
        assert all(step.tokens == sum(len(lesson.ids) for lesson in lessons[:2]) for step in steps)


def practice_rows(name: str) -> bool:
    """Whether requests without an answer count as lessons too."""
    return name == "reject"


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
    pupil.model.get_input_embeddings().register_forward_hook(lambda _, inputs, states: states * torch.nan)
    with pytest.raises(UserError, match=r"step 4 of|no longer finite") as told:
        next(steps)
    assert "learning rate" in told.value.hint
    assert checkpoint.stat().st_size == len(saved)  # saved once more, after step 3, and never after that
    resumed, whole = open_pupil(folder), open_pupil(folder)
    rest = list(fit(name, resumed, lessons, teacher, checkpoint, 1))
    assert rest[0].step == 4
    list(fit(name, whole, lessons, teacher))
    assert same_weights(weights(whole), weights(resumed))


@pytest.mark.parametrize("name", LEARNERS)
def test_changed_settings_do_not_go_on_from_a_checkpoint(
    name: str, folder: Path, teacher: Pupil, lessons: list[Lesson], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "learner.safetensors"
    list(islice(fit(name, open_pupil(folder), lessons, teacher, checkpoint, 1), 3))
    with pytest.raises(UserError, match=r"learning_rate 0\.003 \(now 0\.001\)"):
        list(fit(name, open_pupil(folder), lessons, teacher, checkpoint, 1, learning_rate=1e-3))
    with pytest.raises(UserError, match="lessons"):
        list(fit(name, open_pupil(folder), lessons[1:], teacher, checkpoint, 1))
