"""Rejection sampling keeps what says the same as the trusted answer, and what the student agrees on with itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.methods import build
from supertiny.core.records import Call, Example
from supertiny.training import loop
from supertiny.training.learners import reject
from supertiny.training.lessons import Batch, Lesson, collate, encode_lessons, encode_prompts
from supertiny.training.practice import Practice, Sample
from supertiny.training.pupil import Pupil
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, same_weights, weights, write_student

FORM = build("formats", "compact")
TASK = small_task()
RIGHT = examples("unlabelled", 1)[0].answer
assert RIGHT is not None
OTHER = (Call("TurnOff", {"area": "Attic"}),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


def practice(pupil: Pupil) -> Practice:
    open_rows = [Example(row.request) for row in examples("unlabelled", 1)]
    return Practice(FORM, TASK.tools, TASK.verify, encode_prompts(open_rows, FORM, TASK.tools, pupil.tokenizer))


def answering(monkeypatch: pytest.MonkeyPatch, *texts: str) -> list[int]:
    """Every request is answered with these texts in place of the pupil's; gives the numbers of requests asked."""
    asked: list[int] = []

    def told(pupil: Pupil, prompts: Sequence[Lesson], rules: Practice, samples: int, *_: Any) -> list[list[Sample]]:
        asked.append(len(prompts))
        found = []
        for prompt in prompts:
            assert isinstance(prompt.example, Example)
            request = prompt.example.request
            ids = [[*pupil.tokenizer.encode(text, add_special_tokens=False), 2] for text in texts]
            found.append(
                [rules.judged(request, i, [0.0] * len(i), text, True) for i, text in zip(ids, texts, strict=True)]
            )
        return found

    monkeypatch.setattr(reject, "roll_out", told)
    return asked


def kept(
    monkeypatch: pytest.MonkeyPatch, pupil: Pupil, texts: Sequence[str], lessons: Sequence[Lesson], **more: Any
) -> list[str]:
    answering(monkeypatch, *texts)
    learner = build("learners", {"method": "reject", "samples": len(texts), **more})
    rows = learner._kept(pupil, lessons, practice(pupil), 0, None)
    return [pupil.tokenizer.decode(row.ids[row.answer_start : -1]) for row in rows]


def test_without_a_trusted_answer_a_majority_must_agree(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    pupil = open_pupil(folder)
    yes, no = FORM.write(RIGHT), "TurnOff area Attic"
    assert kept(monkeypatch, pupil, [yes, yes, yes, no], []) == [yes]
    assert kept(monkeypatch, pupil, [yes, yes, no, no], []) == []
    assert kept(monkeypatch, pupil, [yes, yes, no, no], [], least_votes=0.5) == [yes]


def test_what_the_verifier_fails_or_nobody_can_read_has_no_vote(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    pupil = open_pupil(folder)
    assert kept(monkeypatch, pupil, ["TurnOn area Moon"] * 4, []) == []
    assert kept(monkeypatch, pupil, ["TurnOn area"] * 4, []) == []


def test_to_a_trusted_answer_other_spellings_of_it_are_kept_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    pupil = open_pupil(folder)
    row = examples("labelled", 1)[0]
    assert row.answer is not None
    lessons = encode_lessons([row], FORM, TASK.tools, pupil.tokenizer)
    gold = FORM.write(row.answer)
    spelt = gold.replace(" Kitchen", ' "Kitchen"')
    assert spelt != gold
    answering(monkeypatch, gold, spelt, spelt, "TurnOff area Kitchen")
    learner = build("learners", {"method": "reject", "samples": 4})
    rows = learner._kept(pupil, lessons, Practice(FORM, TASK.tools, TASK.verify), 0, None)
    assert [pupil.tokenizer.decode(row.ids[row.answer_start : -1]) for row in rows] == [spelt]


def test_each_round_asks_anew_and_a_resume_reads_what_was_kept(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    pupil = open_pupil(folder)
    lessons = encode_lessons(examples("labelled", 3), FORM, TASK.tools, pupil.tokenizer)
    asked = answering(monkeypatch, FORM.write(RIGHT))
    learner = build("learners", {"method": "reject", "samples": 1, "rows": 2, "passes": 3})
    checkpoint = tmp_path / "learner-0.safetensors"
    steps = list(islice(learner.fit(pupil, lessons, 1, checkpoint, 1, practice=practice(pupil)), 4))
    assert [step.more["kept"] for step in steps] == [1.0] * 4
    assert asked == [4, 4], "two rounds of two steps, each asks three lessons and one open request"
    rest = list(learner.fit(open_pupil(folder), lessons, 1, checkpoint, 1, practice=practice(pupil)))
    assert [step.step for step in rest] == [4, 5, 6]
    assert asked == [4, 4, 4], "the round that had begun is read back; the third is asked"


def test_other_tokens_of_the_lessons_own_text_are_no_new_lesson(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    pupil = open_pupil(folder)
    row = examples("labelled", 1)[0]
    assert row.answer is not None
    (lesson,) = encode_lessons([row], FORM, TASK.tools, pupil.tokenizer)
    gold = FORM.write(row.answer)
    spelt = gold.replace(" Kitchen", ' "Kitchen"')
    rules = Practice(FORM, TASK.tools, TASK.verify)
    samples = [
        rules.judged(row.request, ids, (0.0,) * 3, text, True)
        for ids, text in (((7, 8, 2), gold), ((9, 8, 2), spelt), ((9, 9, 2), spelt))
    ]
    learner = build("learners", "reject")
    assert [sample.text for sample in learner._right(pupil, lesson, samples, rules)] == [spelt]


def test_where_nothing_is_kept_a_round_asks_once_and_every_lesson_is_seen(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Groups are of similar length, so that the one that is not full stands anywhere."""
    pupil = open_pupil(folder)
    lessons = encode_lessons(examples("labelled", 5), FORM, TASK.tools, pupil.tokenizer)
    for seed in range(4):
        asked = answering(monkeypatch, "TurnOn area Moon")
        seen: list[tuple[int, ...]] = []

        def noted(batch: Batch, own: list[tuple[int, ...]] = seen) -> Batch:
            own.extend(row.ids for row in batch.rows)
            return batch

        monkeypatch.setattr(loop, "collate", lambda rows, pad, noted=noted: noted(collate(rows, pad)))
        learner = build("learners", {"method": "reject", "samples": 1, "rows": 2, "passes": 2})
        steps = list(learner.fit(pupil, lessons, seed, practice=Practice(FORM, TASK.tools, TASK.verify)))
        assert [step.more["kept"] for step in steps] == [0.0] * 6
        assert asked == [5, 5], "two rounds of three steps"
        assert sorted(seen) == sorted([lesson.ids for lesson in lessons] * 2)


def test_without_lessons_and_answers_the_weights_stay(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    pupil = open_pupil(folder)
    before = weights(pupil)
    answering(monkeypatch, "TurnOn area Moon")
    learner = build("learners", {"method": "reject", "samples": 1, "passes": 1})
    (step,) = learner.fit(pupil, [], 1, practice=practice(pupil))
    assert step.tokens == 0
    assert same_weights(weights(pupil), before)
