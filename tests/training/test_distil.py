"""A live teacher, its stored scores and a teacher of other tokens: what the student learns of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from supertiny.core.errors import UserError
from supertiny.core.methods import build, cards
from supertiny.training.learners.imitate import Imitate
from supertiny.training.lessons import Lesson, collate, encode_lessons
from supertiny.training.pupil import Pupil
from supertiny.training.scores import Scores
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, same_weights, weights, write_student
from tests.worded_student import padded_pupil, worded_pupil


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def lessons(folder: Path) -> list[Lesson]:
    tokenizer = open_pupil(folder).tokenizer
    return encode_lessons(examples("labelled", 6), build("formats", "compact"), small_task().tools, tokenizer)


def taught(pupil: Pupil, lessons: Sequence[Lesson], passes: int = 25) -> Pupil:
    """A teacher that knows something."""
    list(Imitate(learning_rate=3e-3, passes=passes, rows=6).fit(pupil, lessons, 1))
    return pupil


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, lessons: list[Lesson]) -> Pupil:
    return taught(open_pupil(write_student(tmp_path_factory.mktemp("teacher"), seed=9)), lessons)


def fit(pupil: Pupil, lessons: Sequence[Lesson], given: dict[str, Any], **settings: Any) -> list[float]:
    plan = {"method": "distil", "rows": 3, "passes": 2, "learning_rate": 3e-3, "top_k": 20, **settings}
    return [step.loss for step in build("learners", plan).fit(pupil, lessons, 3, **given)]


@pytest.mark.parametrize("name", sorted(cards("divergences")))
def test_stored_scores_teach_what_the_live_teacher_does(
    name: str, folder: Path, teacher: Pupil, lessons: list[Lesson]
) -> None:
    scores = Scores.of_pupil(teacher, "nine", lessons, teacher.tokenizer, top_k=30)
    live, stored = (
        fit(open_pupil(folder), lessons, given, divergence=name) for given in ({"teacher": teacher}, {"scores": scores})
    )
    assert stored == pytest.approx(live, rel=5e-3)


def test_a_padded_teacher_teaches_what_it_would_without_padding(
    folder: Path, teacher: Pupil, lessons: list[Lesson], tmp_path: Path
) -> None:
    padded = padded_pupil(teacher, tmp_path, 272, "<|think|>")
    with torch.no_grad():
        padded.model.get_input_embeddings().weight[259:] = 0
    for given in ({"teacher": padded}, {"scores": Scores.of_pupil(padded, "p", lessons, teacher.tokenizer, 30)}):
        losses = fit(open_pupil(folder), lessons, given)
        assert losses == pytest.approx(fit(open_pupil(folder), lessons, {"teacher": teacher}), rel=0.02)


@pytest.mark.parametrize("name", sorted(cards("divergences")))
def test_a_teacher_of_other_tokens_teaches_by_spans(
    name: str, folder: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    worded = worded_pupil(tmp_path, seed=4)
    pupil = open_pupil(folder)
    losses = fit(pupil, lessons[:3], {"teacher": worded}, divergence=name, passes=30, truth_share=0.0)
    assert losses[-1] < 0.8 * losses[0]
    again = fit(open_pupil(folder), lessons[:3], {"teacher": worded}, divergence=name, passes=2, truth_share=0.0)
    assert len(again) == 2


def test_spans_bring_the_student_to_the_teachers_probabilities(
    folder: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    """Not only nearer to the answer: a random teacher finds it unlikely, and the student comes to think so too."""
    worded, few = worded_pupil(tmp_path, seed=4), lessons[:3]
    pupil = open_pupil(folder)
    scores = Scores.of_pupil(worded, "worded", few, pupil.tokenizer)

    def gap(student: Pupil) -> float:
        batch = collate(few, student.pad_id)
        with torch.no_grad():
            logits = student.logits_at(batch.ids, batch.mask, batch.wanted)
        own = torch.log_softmax(logits, dim=-1).gather(-1, batch.targets[:, None])[:, 0]
        said = scores.of(batch)
        spans = own[said.spans.clamp(min=0)].masked_fill(said.spans < 0, 0).sum(dim=1)
        return float((spans.exp() - said.span_logprobs.exp()).abs().mean())

    sure = taught(open_pupil(folder), few, 80)
    before = gap(sure)
    fit(sure, few, {"scores": scores}, passes=60, truth_share=0.0)
    assert before > 0.5
    assert gap(sure) < 0.1 * before


def test_tokens_of_which_the_teacher_says_nothing_are_learned_from_the_answer(
    folder: Path, lessons: list[Lesson], tmp_path: Path
) -> None:
    """The token that ends an answer is one, and without it a student would never stop."""
    pupil = open_pupil(folder)
    fit(pupil, lessons[:3], {"teacher": worded_pupil(tmp_path, seed=4)}, passes=60, truth_share=0.0)
    batch = collate(lessons[:3], pupil.pad_id)
    with torch.no_grad():
        probabilities = pupil.logits_at(batch.ids, batch.mask, batch.wanted).softmax(dim=-1)
    ends = batch.targets == pupil.tokenizer.eos_token_id
    assert ends.sum() == 3
    assert (probabilities[ends, pupil.tokenizer.eos_token_id] > 0.9).all()


def test_going_on_from_a_checkpoint_with_stored_scores(
    folder: Path, teacher: Pupil, lessons: list[Lesson], tmp_path: Path
) -> None:
    scores = Scores.of_pupil(teacher, "nine", lessons, teacher.tokenizer, top_k=9)
    learner = build("learners", {"method": "distil", "rows": 2, "passes": 2})
    whole, stopped, resumed = (open_pupil(folder) for _ in range(3))
    list(learner.fit(whole, lessons, 3, scores=scores))
    steps = learner.fit(stopped, lessons, 3, tmp_path / "c", 2, scores=scores)
    for _ in range(3):
        next(steps)
    list(learner.fit(resumed, lessons, 3, tmp_path / "c", 2, scores=scores))
    assert same_weights(weights(whole), weights(resumed))


def test_what_does_not_fit_is_told_before_the_first_step(folder: Path, teacher: Pupil, lessons: list[Lesson]) -> None:
    scores = Scores.of_pupil(teacher, "nine", lessons[:3], teacher.tokenizer, top_k=9)
    learner, pupil = build("learners", "distil"), open_pupil(folder)
    with pytest.raises(UserError, match="of other lessons"):
        learner.fit(pupil, lessons, 3, scores=scores)
    with pytest.raises(TypeError, match="one of both"):
        learner.fit(pupil, lessons, 3)
    with pytest.raises(TypeError, match="one of both"):
        learner.fit(pupil, lessons, 3, teacher=teacher, scores=scores)


def test_a_teacher_that_cannot_be_aligned_is_told_before_the_first_step(
    folder: Path, lessons: list[Lesson], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worded = worded_pupil(tmp_path)
    encode = worded.tokenizer.encode
    monkeypatch.setattr(worded.tokenizer, "encode", lambda text, **more: encode(text.upper(), **more))
    with pytest.raises(UserError, match="no answer reads the same") as told:
        build("learners", "distil").fit(open_pupil(folder), lessons, 3, teacher=worded)
    assert "imitate or reject" in told.value.hint
