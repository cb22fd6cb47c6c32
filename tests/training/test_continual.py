"""A student that learns a second task keeps the first where rows of it come back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from supertiny.core.errors import UserError
from supertiny.core.files import write_rows
from supertiny.core.methods import build
from supertiny.core.records import Example
from supertiny.training.learners._aligned import Aligned
from supertiny.training.learners.continual import Continual
from supertiny.training.lessons import Lesson, encode_lessons
from supertiny.training.loop import Step
from supertiny.training.practice import Practice
from supertiny.training.pupil import Pupil
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, same_weights, weights, write_student

FORM = build("formats", "compact")
TASK = small_task()
PRACTICE = Practice(FORM, TASK.tools, TASK.verify)


def of_tool(name: str) -> list[Example]:
    return [row for row in examples("labelled") if row.answer and row.answer.calls[0].tool == name]


def lessons_of(rows: Sequence[Example], pupil: Pupil) -> list[Lesson]:
    return encode_lessons(rows, FORM, TASK.tools, pupil.tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that was taught to switch lights on."""
    folder = write_student(tmp_path_factory.mktemp("student"))
    pupil = open_pupil(folder)
    learner = build("learners", {"method": "imitate", "rows": 6, "passes": 30, "learning_rate": 5e-3})
    list(learner.fit(pupil, lessons_of(of_tool("TurnOn"), pupil), 3))
    taught = tmp_path_factory.mktemp("taught")
    pupil.save(taught, torch.float32)
    return taught


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("earlier") / "train.jsonl"
    write_rows(path, (row.to_json() for row in of_tool("TurnOn")))
    return path


def taught(folder: Path, **settings: Any) -> list[Step]:
    """Then it is taught to dim them."""
    pupil = open_pupil(folder)
    chosen = {"rows": 3, "passes": 10, "learning_rate": 3e-3, "measured_steps": 5, "reptile_steps": 0, **settings}
    return list(Continual(**chosen).fit(pupil, lessons_of(of_tool("Dim"), pupil), 3, practice=PRACTICE))


def test_less_is_forgotten_with_replay_and_with_alignment(folder: Path, replay: Path) -> None:
    runs = {
        "neither": taught(folder, replay=replay, replay_share=0.0),
        "little": taught(folder, replay=replay, replay_share=0.1),
        "replay": taught(folder, replay=replay, replay_share=0.4),
        "aligned": taught(folder, replay=replay, replay_share=0.0, reptile_steps=4, reptile_rate=0.3),
        "both": taught(folder, replay=replay, replay_share=0.4, reptile_steps=4, reptile_rate=0.3),
    }
    forgotten = {name: steps[-1].more["forgotten"] for name, steps in runs.items()}
    learned = {name: steps[-1].loss for name, steps in runs.items()}
    assert forgotten["neither"] > 0.5
    assert forgotten["replay"] < 0.5 * forgotten["neither"]
    assert forgotten["aligned"] < forgotten["neither"]
    assert forgotten["both"] < 0.5 * forgotten["neither"]
    assert learned["replay"] < 0.5 * runs["replay"][0].loss


def test_forgetting_is_measured_in_time_and_from_the_start(folder: Path, replay: Path) -> None:
    steps = taught(folder, replay=replay, measured_steps=8)
    assert [step.step for step in steps if step.more] == [8, 16, 20]
    starts = {round(step.more["retained"] - step.more["forgotten"], 9) for step in steps if step.more}
    assert len(starts) == 1
    assert all(not step.more for step in taught(folder))  # without earlier rows there is nothing to measure


def test_batches_have_the_shares_that_were_asked_for(
    folder: Path, replay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "domain.txt"
    text.write_text("The hall is dark.\nThe attic has no light. " * 20, encoding="utf-8")
    pupil = open_pupil(folder)
    new = lessons_of(of_tool("Dim"), pupil)
    seen: list[tuple[Lesson, ...]] = []
    settings = Continual(
        replay=replay, domain=text, replay_share=0.4, domain_share=0.2, block_tokens=32, held_back=2,
        rows=2, passes=6, reptile_steps=0,
    )  # fmt: skip
    move = Aligned.move

    def watched(self: Aligned, rows: Sequence[Lesson], rate: float, step: int) -> tuple[float, float]:
        seen.append(tuple(rows))
        return move(self, rows, rate, step)

    monkeypatch.setattr(Aligned, "move", watched)
    list(settings.fit(pupil, new, 3, practice=PRACTICE))
    earlier = {lesson.ids for lesson in lessons_of(of_tool("TurnOn"), pupil)}
    fresh = {lesson.ids for lesson in new}
    kinds = [
        (sum(r.ids in fresh for r in rows), sum(r.ids in earlier for r in rows), sum(r.answer_start == 1 for r in rows))
        for rows in seen
    ]
    assert set(kinds) == {(2, 2, 1)}
    replayed = [row.ids for rows in seen for row in rows if row.ids in earlier]
    assert len(set(replayed)) == len(earlier) - 2  # all but those held back, and evenly
    counts = {ids: replayed.count(ids) for ids in replayed}
    assert max(counts.values()) - min(counts.values()) <= 1
    blocks = [row for rows in seen for row in rows if row.answer_start == 1]
    assert max(len(block.ids) for block in blocks) == 32
    assert len({block.ids for block in blocks}) > 5


def test_text_of_the_domain_is_learned(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "domain.txt"
    text.write_text("Nobody is in the attic and the garden sleeps. " * 8, encoding="utf-8")
    losses = [step.loss for step in taught(folder, domain=text, domain_share=0.4, block_tokens=64)]
    assert losses[-1] < 0.7 * losses[0]


def test_weights_are_drawn_back_and_a_resume_knows_from_where(folder: Path, replay: Path, tmp_path: Path) -> None:
    settings = Continual(replay=replay, rows=3, passes=4, learning_rate=3e-3, reptile_steps=3, reptile_rate=0.25)
    whole, stopped, resumed, free = (open_pupil(folder) for _ in range(4))
    new = lessons_of(of_tool("Dim"), whole)
    start = weights(whole)
    records = []
    for step in settings.fit(whole, new, 3, practice=PRACTICE):
        records.append(step)
        if step.step == 3:
            drawn = weights(whole)
    unaligned = Continual(replay=replay, rows=3, passes=4, learning_rate=3e-3, reptile_steps=0)
    list(islice(unaligned.fit(free, new, 3, practice=PRACTICE), 3))
    for name, tensor in weights(free).items():
        assert torch.allclose(drawn[name] - start[name], 0.25 * (tensor - start[name]), atol=1e-6)
    checkpoint = tmp_path / "learner.safetensors"
    list(islice(settings.fit(stopped, new, 3, checkpoint, 2, practice=PRACTICE), 5))
    rest = list(settings.fit(resumed, new, 3, checkpoint, 2, practice=PRACTICE))
    assert [(step.loss, step.more) for step in rest] == [(step.loss, step.more) for step in records[4:]]
    assert same_weights(weights(whole), weights(resumed))


def test_an_adapter_alone_is_moved(folder: Path, replay: Path) -> None:
    pupil = open_pupil(folder)
    pupil.model = get_peft_model(pupil.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).base_model.model
    before = weights(pupil)
    learner = Continual(replay=replay, rows=3, passes=3, learning_rate=1e-2, reptile_steps=2)
    list(learner.fit(pupil, lessons_of(of_tool("Dim"), pupil), 3, practice=PRACTICE))
    after = weights(pupil)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {n for n in after if "lora" in n}


def test_files_that_are_no_good_are_told(folder: Path, replay: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"request": 3}\n', encoding="utf-8")  # no text
    with pytest.raises(UserError, match="row 1 is no example"):
        taught(folder, replay=wrong)
    write_rows(wrong, [of_tool("TurnOn")[0].to_json()])
    with pytest.raises(UserError, match="1 rows"):
        taught(folder, replay=wrong)
    with pytest.raises(UserError, match="not there"):
        taught(folder, replay=tmp_path / "nowhere.jsonl")
    empty = tmp_path / "empty.txt"
    empty.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="no text"):
        taught(folder, domain=empty)
    with pytest.raises(UserError, match="cannot be read"):
        taught(folder, domain=tmp_path / "nowhere.txt")
    empty.write_text("some text", encoding="utf-8")
    with pytest.raises(UserError, match="no room"):
        taught(folder, replay=replay, domain=empty, replay_share=0.6, domain_share=0.5)
