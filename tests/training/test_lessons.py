"""Lessons and batches: only answers are learned, and each lesson stands in a pass once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.records import Call
from supertiny.training.lessons import Lesson, collate, encode_lessons, grouped
from supertiny.training.pupil import Pupil
from tests.small_task import example, examples, small_task
from tests.tiny_student import open_pupil, write_student

FORM = build("formats", "compact")
TOOLS = small_task().tools


@pytest.fixture(scope="module")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> Pupil:
    return open_pupil(write_student(tmp_path_factory.mktemp("student")))


@pytest.mark.parametrize("text", ["turn on the kitchen light", "включи свет 💡", "打开厨房的灯"])
@pytest.mark.parametrize("name", ["compact", "chat_json"])
def test_a_lesson_is_the_prompt_then_the_answer_then_the_stop_token(name: str, text: str, pupil: Pupil) -> None:
    form = build("formats", name)
    row = example(text, [Call("Dim", {"area": "Kitchen", "level": 5})])
    assert row.answer is not None
    (lesson,) = encode_lessons([row], form, TOOLS, pupil.tokenizer)
    start = lesson.answer_start
    assert pupil.tokenizer.decode(lesson.ids[:start]) == form.encode(row.request, TOOLS).text
    assert pupil.tokenizer.decode(lesson.ids[start:]) == form.write(row.answer) + form.stop
    assert lesson.ids[-1] == pupil.tokenizer.convert_tokens_to_ids(form.stop)


def test_rows_without_an_answer_are_left_out_and_rows_without_a_call_are_lessons(pupil: Pupil) -> None:
    rows = [replace(example("a"), answer=None), example("tell me a joke")]
    (lesson,) = encode_lessons(rows, FORM, TOOLS, pupil.tokenizer)
    assert pupil.tokenizer.decode(lesson.ids[lesson.answer_start :]) == f"~{FORM.stop}"
    with pytest.raises(UserError, match="no example with an answer"):
        encode_lessons(rows[:1], FORM, TOOLS, pupil.tokenizer)


def test_a_lesson_that_is_too_long_is_told_with_its_id(pupil: Pupil) -> None:
    row = example("x" * 50, id="row-7")
    (lesson,) = encode_lessons([row], FORM, TOOLS, pupil.tokenizer, 54)
    assert len(lesson.ids) == 54  # the text, line feed and ">", "~" and the stop token
    with pytest.raises(UserError, match="row-7 has 54 tokens, more than 53") as told:
        encode_lessons([row], FORM, TOOLS, pupil.tokenizer, 53)
    assert "longest_tokens" in told.value.hint


def test_a_stop_token_that_the_tokenizer_lacks_is_told(pupil: Pupil) -> None:
    form = build("formats", {"method": "compact", "stop": "<|eot_id|>"})
    with pytest.raises(UserError, match="no token '<|eot_id|>'"):
        encode_lessons(examples("labelled", 2), form, TOOLS, pupil.tokenizer)


def test_only_answer_tokens_are_targets() -> None:
    batch = collate([Lesson((5, 6, 7, 8, 9), 3), Lesson((1, 2, 3), 1)], pad=0)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9], [1, 2, 3, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    # The place before a token is where it is learned.
    assert batch.wanted.tolist() == [[False, False, True, True, False], [True, True, False, False, False]]
    assert batch.targets.tolist() == [8, 9, 2, 3]
    assert batch.tokens == 8


def test_a_pass_holds_each_lesson_once_in_batches_of_similar_length() -> None:
    lessons = [Lesson(tuple(range(1, 3 + number % 9)) + (100 + number,), 1) for number in range(23)]
    made = grouped(lessons, rows=4, seed=5)
    assert [len(group) for group in made].count(4) == 5
    assert sorted(lesson.ids for group in made for lesson in group) == sorted(lesson.ids for lesson in lessons)
    lengths = [[len(lesson.ids) for lesson in group] for group in made]
    assert all(max(group) - min(group) <= 2 for group in lengths)
    assert grouped(lessons, rows=4, seed=5) == made
    assert grouped(lessons, rows=4, seed=6) != made


def test_a_batch_knows_its_lessons_and_where_each_answer_token_stands() -> None:
    rows = [Lesson((5, 6, 7, 8, 9), 3), Lesson((1, 2, 3), 1)]
    batch = collate(rows, pad=0)
    assert batch.rows == tuple(rows)
    assert batch.row_of_position.tolist() == [0, 0, 1, 1]
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert moved.ids.device.type == "meta"
    assert moved.rows == batch.rows


def test_logits_are_computed_only_where_they_are_wanted(pupil: Pupil) -> None:
    lessons = encode_lessons(examples("labelled", 4), FORM, TOOLS, pupil.tokenizer)
    batch = collate(lessons, pad=0)
    shapes = []
    hook = pupil.model.get_output_embeddings().register_forward_hook(lambda _, i, o: shapes.append(tuple(o.shape)))
    with torch.no_grad():
        logits = pupil.logits_at(batch.ids, batch.mask, batch.wanted)
        hook.remove()
        whole = pupil.model(input_ids=batch.ids, attention_mask=batch.mask).logits
    answers = sum(len(lesson.ids) - lesson.answer_start for lesson in lessons)
    assert shapes == [(answers, whole.shape[-1])]
    torch.testing.assert_close(logits, whole[batch.wanted], atol=1e-5, rtol=1e-5)
    assert logits.dtype == torch.float32


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        open_pupil(tmp_path)


def test_made_rows_that_are_too_long_are_left_out_and_counted(pupil: Pupil) -> None:
    rows = [example("x" * 50, id="long", source="pool"), example("x" * 9, id="short", source="pool")]
    told: list[str] = []
    (lesson,) = encode_lessons(rows, FORM, TOOLS, pupil.tokenizer, 53, "compress.longest_tokens", told.append)
    assert len(lesson.ids) == 13
    assert len(told) == 1
    assert "1 rows" in told[0]
    assert "compress.longest_tokens" in told[0]
    gold = example("x" * 50, id="gold", source="labelled")
    with pytest.raises(UserError, match="gold has 54 tokens") as refused:
        encode_lessons([gold, *rows], FORM, TOOLS, pupil.tokenizer, 53, "compress.longest_tokens")
    assert "compress.longest_tokens" in refused.value.hint
