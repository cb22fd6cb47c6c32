"""The floor answers with the nearest example's calls, over labelled rows and the teacher's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from supertiny.core.errors import UserError
from supertiny.core.files import write_rows
from supertiny.core.records import Answer, Call, Example, Request
from supertiny.report.floor import TfidfFloor


def test_it_repeats_the_nearest_examples_calls() -> None:
    known = [
        Example(Request.from_text("выключи свет на кухне"), Answer((Call("light_off", {"area": "кухня"}),))),
        Example(Request.from_text("what time is it"), Answer((Call("get_time"),))),
        Example(Request.from_text("unlabelled row that is nearest of all")),
    ]
    asked = ["выключи пожалуйста свет", "tell me what time it is", "unlabelled row that is nearest of all"]
    answers = TfidfFloor(known).answer([Request.from_text(text) for text in asked])
    assert answers[0].calls == (Call("light_off", {"area": "кухня"}),)
    assert answers[1].calls == (Call("get_time"),)
    assert all(answer.by == "tfidf_floor" and 0 <= (answer.confidence or 0) <= 1 for answer in answers)


def test_it_knows_what_the_teacher_made_of_the_pool(fake_run: SimpleNamespace) -> None:
    asked = [Request.from_text("start the robot mower now please")]
    before = TfidfFloor.open(fake_run).answer(asked)[0]
    made = Example(Request.from_text("start the robot mower", "pool-1"), Answer((Call("mow"),)))
    write_rows(fake_run.folder / "prototype" / "train.jsonl", [made.to_json()])
    after = TfidfFloor.open(fake_run).answer(asked)[0]
    assert before.calls != after.calls == (Call("mow"),)


def test_without_examples_it_says_so() -> None:
    with pytest.raises(UserError, match="no example with an answer"):
        TfidfFloor([Example(Request.from_text("x"))])
