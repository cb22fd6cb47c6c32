"""Reinforcement beside distillation: parts of a batch, which requests are tried, and teachers of other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.records import Example
from supertiny.training.learners import _policy
from supertiny.training.learners._policy import Trials
from supertiny.training.lessons import Lesson, encode_lessons
from supertiny.training.loop import Step
from supertiny.training.practice import Practice, Sample
from supertiny.training.pupil import Pupil
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, write_student
from tests.worded_student import worded_pupil

FORM = build("formats", "compact")
TASK = small_task()
PRACTICE = Practice(FORM, TASK.tools, TASK.verify, max_tokens=6)


class EvenTokens:
    """A reward that answers of random weights differ in."""

    def __call__(self, example: Example, samples: Sequence[Sample]) -> list[float]:
        return [sum(token % 2 == 0 for token in sample.ids) / len(sample.ids) for sample in samples]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(autouse=True)
def reward_of_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_policy, "build", lambda family, block: EvenTokens())


def lessons_of(pupil: Pupil, count: int = 6) -> list[Lesson]:
    return encode_lessons(examples("labelled", count), FORM, TASK.tools, pupil.tokenizer)


def taught(pupil: Pupil, **settings: Any) -> list[Step]:
    learner = build("learners", {"method": "hybrid", "samples": 4, "learning_rate": 1e-3, **settings})
    return list(learner.fit(pupil, lessons_of(pupil), 3, practice=PRACTICE))


def test_a_batch_in_parts_is_worth_what_the_whole_is(folder: Path) -> None:
    """Own answers and taught ones fall unevenly into the parts: each kind's mean is over the step."""
    found = []
    for room in (100, 3, 1):
        pupil = open_pupil(folder)

        def tight(ids: torch.Tensor, *more: Any, own: Pupil = pupil, room: int = room) -> torch.Tensor:
            if len(ids) > room:
                raise torch.OutOfMemoryError("out of memory")
            return Pupil.logits_at(own, ids, *more)

        pupil.logits_at = tight  # type: ignore[method-assign, assignment]
        found.append(taught(pupil, rows=6, asked=2, policy_share_first=0.5)[0])
    for step in found[1:]:
        assert step.loss == pytest.approx(found[0].loss, rel=1e-4)
        assert step.gradient_norm == pytest.approx(found[0].gradient_norm, rel=1e-3)


def test_not_only_the_shortest_requests_are_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, ...]] = []

    def drawn(self: Trials, group: Sequence[Lesson], step: int) -> list[Lesson]:
        tried.append(tuple(sorted(len(lesson.ids) for lesson in group)))
        return []

    monkeypatch.setattr(Trials, "drawn", drawn)
    for _ in range(2):
        taught(open_pupil(folder), rows=6, asked=2, passes=8)
    assert {len(lengths) for lengths in tried} == {2}
    assert len(set(tried)) > 1
    assert tried[:8] == tried[8:], "the same seed asks the same"


@pytest.mark.parametrize("name", ["hybrid", "distil_online"])
def test_a_live_teacher_of_other_tokens_is_refused_before_the_first_step(
    name: str, folder: Path, tmp_path: Path
) -> None:
    pupil, teacher = open_pupil(folder), worded_pupil(tmp_path)
    with pytest.raises(UserError, match="another tokenizer") as told:
        build("learners", name).fit(pupil, lessons_of(pupil), 3, practice=PRACTICE, teacher=teacher)
    assert "teaches by its answers" in told.value.hint
