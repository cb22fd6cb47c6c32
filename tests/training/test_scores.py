"""A teacher's scores: from any engine or a loaded model the same, stored once, refused where they do not belong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.protocols import Engine
from supertiny.core.records import Prompt, TokenScores
from supertiny.training.lessons import Lesson, collate, encode_lessons
from supertiny.training.pupil import Pupil
from supertiny.training.scores import Scores
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, write_student
from tests.worded_student import padded_pupil, worded_pupil, worded_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("teacher"), seed=9)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Pupil:
    return open_pupil(folder)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    opened: Engine = build("engines", {"method": "torch", "precision": "float32"}).open(folder)
    return opened


@pytest.fixture(scope="module")
def lessons(teacher: Pupil) -> list[Lesson]:
    return encode_lessons(examples("labelled", 7), build("formats", "compact"), small_task().tools, teacher.tokenizer)


@pytest.fixture(scope="module")
def scores(teacher: Pupil, lessons: list[Lesson]) -> Scores:
    return Scores.of_pupil(teacher, "nine", lessons, teacher.tokenizer, top_k=5, at_once=3)


def test_a_loaded_teachers_scores_are_its_best_tokens_in_the_order_of_the_lessons(
    teacher: Pupil, lessons: list[Lesson], scores: Scores
) -> None:
    assert (scores.tokenizers, scores.top_k, scores.covered) == ("same", 5, 1.0)
    for place, lesson in enumerate(lessons):
        with torch.no_grad():
            logits = teacher.model(torch.tensor([lesson.ids])).logits[0, lesson.answer_start - 1 : -1]
        best = torch.log_softmax(logits.float(), dim=-1).topk(5)
        rows = slice(*scores.offsets[place : place + 2].tolist())
        assert scores.ids[rows].tolist() == best.indices.tolist()
        torch.testing.assert_close(scores.logprobs[rows, :5].float(), best.values, atol=4e-3, rtol=0)
        rest = 1 - best.values.exp().sum(dim=-1)
        torch.testing.assert_close(scores.logprobs[rows, 5].float().exp(), rest, atol=1e-3, rtol=0)


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_an_engine_says_the_same(
    with_tokenizer: bool, engine: Engine, teacher: Pupil, lessons: list[Lesson], scores: Scores
) -> None:
    tokenizer = teacher.tokenizer if with_tokenizer else None
    found = Scores.of_engine(engine, lessons, teacher.tokenizer, tokenizer, top_k=5, at_once=4)
    assert (found.tokenizers, found.teacher, found.asked) == ("same", engine.name, scores.asked)
    assert torch.equal(found.ids, scores.ids)
    assert torch.equal(found.offsets, scores.offsets)
    torch.testing.assert_close(found.logprobs, scores.logprobs, atol=4e-3, rtol=0)


def test_a_batch_gets_its_own_rows(teacher: Pupil, lessons: list[Lesson], scores: Scores) -> None:
    batch = collate([lessons[4], lessons[1], lessons[4]], 0)
    said = scores.of(batch)
    assert said.places.tolist() == list(range(len(batch.targets)))
    with torch.no_grad():
        logits = teacher.logits_at(batch.ids, batch.mask, batch.wanted)
    assert said.ids.tolist() == logits.topk(5).indices.tolist()
    assert said.logprobs.shape == (len(batch.targets), 6)
    assert len(said.spans) == 0


def test_fewer_tokens_join_the_rest(teacher: Pupil, lessons: list[Lesson], scores: Scores) -> None:
    fewer, asked = scores.best(2), Scores.of_pupil(teacher, "nine", lessons, teacher.tokenizer, top_k=2)
    assert torch.equal(fewer.ids, asked.ids)
    torch.testing.assert_close(fewer.logprobs, asked.logprobs, atol=4e-3, rtol=0)
    assert scores.best(5) is scores


def test_a_teacher_reads_prompts_of_its_own(engine: Engine, teacher: Pupil, lessons: list[Lesson]) -> None:
    prompts = [Prompt(text=f"example {number}\n> ") for number in range(len(lessons))]
    plain, told = (
        Scores.of_engine(engine, lessons, teacher.tokenizer, top_k=5, prompts=given) for given in (None, prompts)
    )
    assert plain.asked != told.asked
    assert not torch.equal(plain.logprobs, told.logprobs)


def test_padded_vocabularies_need_no_setting(teacher: Pupil, lessons: list[Lesson], tmp_path: Path) -> None:
    wide = padded_pupil(teacher, tmp_path, 300, "<|think|>")
    with torch.no_grad():  # so that tokens that the student lacks would be among the best
        wide.model.get_input_embeddings().weight[259:] = wide.model.get_input_embeddings().weight[64:105]
    found = Scores.of_pupil(wide, "wide", lessons, teacher.tokenizer, top_k=40)
    assert found.tokenizers == "padded"
    assert torch.equal(found.ids, Scores.of_pupil(teacher, "nine", lessons, teacher.tokenizer, top_k=40).ids)
    server: Any = _Server(wide.tokenizer, first=230)
    asked = Scores.of_engine(server, lessons, teacher.tokenizer, wide.tokenizer, top_k=40)
    assert asked.tokenizers == "padded"
    assert asked.ids[0].tolist() == [*range(230, 259), *[-1] * 11]
    for scores in (found, asked):
        scores.check(lessons, 259)
    narrow = Scores.of_pupil(teacher, "nine", lessons, wide.tokenizer, top_k=40)
    assert narrow.tokenizers == "padded"
    assert (narrow.ids >= 0).all()


def test_a_teacher_of_other_tokens_is_asked_for_spans(lessons: list[Lesson], teacher: Pupil, tmp_path: Path) -> None:
    other = worded_pupil(tmp_path, seed=4)
    found = Scores.of_pupil(other, "worded", lessons, teacher.tokenizer)
    assert (found.tokenizers, len(found.ids), found.top_k) == ("different", 0, 0)
    answers = [lesson.ids[lesson.answer_start :] for lesson in lessons]
    # Of every answer all but the token that ends it, which is the student's own.
    assert found.covered == pytest.approx(1 - len(lessons) / sum(map(len, answers)))
    first, last = found.span_offsets[2:4].tolist()
    text = teacher.tokenizer.decode(answers[2][:-1])
    prompt = teacher.tokenizer.decode(lessons[2].ids[: lessons[2].answer_start])
    begin, own = (other.tokenizer.encode(part, add_special_tokens=False) for part in (prompt, text))
    assert found.span_ends[last - 1] == len(answers[2]) - 1
    assert last - first < len(answers[2]) - 1  # some spans hold several of the student's tokens
    with torch.no_grad():
        logprobs = other.model(torch.tensor([[*begin, *own]])).logits[0].float().log_softmax(-1)
    each = torch.tensor([logprobs[len(begin) - 1 + place, token] for place, token in enumerate(own)])
    assert found.span_logprobs[first:last].sum().item() == pytest.approx(each.sum().item(), rel=1e-4)
    batch = collate([lessons[2], lessons[0]], 0)
    said = found.of(batch)
    assert len(said.places) == 0
    covered = said.spans[said.spans >= 0].tolist()
    ends = [len(answers[2]) - 1, len(answers[2]) + len(answers[0]) - 1]
    assert covered == [place for place in range(len(batch.targets)) if place not in ends]


class _Server:
    """An engine that cuts as it likes: `tokens` of the text, each with the log-probability of its number."""

    name = "server"

    def __init__(self, tokenizer: Any, logprob: float = -0.5, first: int = 0) -> None:
        self.tokenizer = tokenizer
        self.logprob = logprob
        self.first = first

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        made = []
        for text in continuations:
            tokens = np.array(self.tokenizer.encode(text, add_special_tokens=False))
            best = np.tile(self.first + np.arange(top), (len(tokens), 1))
            own = np.full(len(tokens), self.logprob)
            made.append(TokenScores(tokens, best, np.full(best.shape, -5.0), own))
        return made


def test_an_engine_of_other_tokens_needs_its_tokenizer(teacher: Pupil, lessons: list[Lesson]) -> None:
    server: Any = _Server(worded_tokenizer())
    with pytest.raises(UserError, match="server does not cut answers") as told:
        Scores.of_engine(server, lessons, teacher.tokenizer)
    assert "tokenizer" in told.value.hint
    found = Scores.of_engine(server, lessons, teacher.tokenizer, server.tokenizer)
    assert found.tokenizers == "different"
    ends = found.span_ends[: found.span_offsets[1]].tolist()
    counts = np.diff([0, *ends])
    assert counts.max() > 1
    assert set(found.span_logprobs.tolist()) == {-0.5}  # one token each of the teacher's


def test_an_answer_that_the_same_tokenizer_cuts_otherwise_is_aligned_by_its_text(lessons: list[Lesson]) -> None:
    """As a server does that merges the prompt's end with the answer's beginning."""
    tokenizer = worded_tokenizer()
    answer = tokenizer.encode("TurnOn it", add_special_tokens=False)
    bytewise = [token for letter in "TurnOn it" for token in tokenizer.encode(letter, add_special_tokens=False)]
    prompt = tokenizer.encode("x> ", add_special_tokens=False)
    made = [Lesson((*prompt, *ids), len(prompt)) for ids in (answer, bytewise)]
    found = Scores.of_engine(_Server(tokenizer), made, tokenizer, tokenizer, top_k=3)  # type: ignore[arg-type]
    assert found.tokenizers == "same"
    assert found.offsets.tolist() == [0, 3, 3]
    assert found.span_ends.tolist() == [6, 7, 9]


def test_what_cannot_be_aligned_or_is_no_number_is_told(teacher: Pupil, lessons: list[Lesson]) -> None:
    class Shouting(_Server):
        def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
            return super().score(prompts, [text.upper() for text in continuations], top)

    server: Any = Shouting(worded_tokenizer())
    with pytest.raises(UserError, match="no answer reads the same") as told:
        Scores.of_engine(server, lessons, teacher.tokenizer, server.tokenizer)
    assert "imitate or reject" in told.value.hint
    broken: Any = _Server(worded_tokenizer(), np.nan)
    with pytest.raises(UserError, match="not a number"):
        Scores.of_engine(broken, lessons, teacher.tokenizer, broken.tokenizer)


def test_lessons_with_tokens_beyond_the_teacher_are_refused(teacher: Pupil) -> None:
    with pytest.raises(UserError, match="the teacher has 259 tokens, and the lessons use token 400"):
        Scores.of_pupil(teacher, "nine", [Lesson((5, 6, 400), 1)], teacher.tokenizer)


@pytest.mark.parametrize("different", [False, True])
def test_what_is_saved_is_read(
    different: bool, teacher: Pupil, lessons: list[Lesson], scores: Scores, tmp_path: Path
) -> None:
    if different:
        scores = Scores.of_pupil(worded_pupil(tmp_path / "w"), "nine", lessons, teacher.tokenizer)
    path = tmp_path / "scores.safetensors"
    scores.save(path)
    again = Scores.open(path, lessons, "nine")
    for name in ("ids", "logprobs", "offsets", "span_ends", "span_logprobs", "span_offsets"):
        assert torch.equal(getattr(again, name), getattr(scores, name))
    assert (again.teacher, again.tokenizers, again.covered) == ("nine", scores.tokenizers, scores.covered)
    if not different:
        assert path.stat().st_size < len(scores.ids) * (5 * 6 + 2) + 2000


def test_scores_of_others_are_refused(lessons: list[Lesson], scores: Scores, tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    scores.save(path)
    with pytest.raises(UserError, match="of 'nine', not of 'ten'"):
        Scores.open(path, lessons, "ten")
    changed = replace(lessons[0], answer_start=lessons[0].answer_start - 1)
    for others in (lessons[1:], lessons[::-1], [changed, *lessons[1:]]):
        with pytest.raises(UserError, match="other lessons or prompts"):
            Scores.open(path, others, "nine")
    with pytest.raises(UserError, match="other lessons or prompts"):
        Scores.open(path, lessons, "nine", [Prompt(text="x")] * len(lessons))
    with pytest.raises(UserError, match="of other lessons"):
        scores.check([changed], 259)
    scores.check(lessons[2:4], 259)
    with pytest.raises(UserError, match="the student has 50") as told:
        scores.check(lessons, 50)
    assert "imitate or reject" in told.value.hint


def _nan(logprobs: torch.Tensor) -> torch.Tensor:
    changed = logprobs.clone()
    changed[0, 0] = torch.nan
    return changed


BREAKS: dict[str, Any] = {
    "ids": lambda ids: ids - 400,
    "ids ": lambda ids: ids.long(),
    "ids  ": lambda ids: ids[:-1],
    "ids   ": lambda ids: ids[:, 0].contiguous(),
    "logprobs": lambda logprobs: -logprobs,
    "logprobs ": _nan,
    "logprobs  ": lambda logprobs: logprobs[:, :-1].contiguous(),
    "offsets": lambda offsets: offsets.flip(0),
    "offsets ": lambda offsets: offsets[:-1],
    "offsets  ": lambda offsets: offsets * 0,
    "offsets   ": lambda offsets: torch.cat([offsets[:1], offsets[1:].clamp(min=int(offsets[-1]))]),
    "span_ends": lambda ends: torch.tensor([3], dtype=torch.int32),
    "span_offsets": lambda offsets: offsets + 1,
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_hostile_file_is_told(name: str, lessons: list[Lesson], scores: Scores, tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    broken = replace(scores, **{name.strip(): BREAKS[name](getattr(scores, name.strip()))})
    broken.save(path)
    with pytest.raises(UserError, match="holds no teacher's scores"):
        Scores.open(path, lessons, "nine")


@pytest.mark.parametrize("ends", [[5, 5], [9, 4], [0, 2], [2, 400]])
def test_spans_outside_their_answer_are_told(
    ends: list[int], teacher: Pupil, lessons: list[Lesson], tmp_path: Path
) -> None:
    scores = Scores.of_pupil(worded_pupil(tmp_path / "w"), "nine", lessons, teacher.tokenizer)
    last = int(scores.span_offsets[1])
    changed = scores.span_ends.clone()
    changed[last - 2 : last] = torch.tensor(ends)
    replace(scores, span_ends=changed).save(tmp_path / "scores")
    with pytest.raises(UserError, match="a span ends outside its answer"):
        Scores.open(tmp_path / "scores", lessons, "nine")


def test_a_file_that_is_cut_off_or_another_is_told(lessons: list[Lesson], scores: Scores, tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    with pytest.raises(UserError, match="is not there"):
        Scores.open(path, lessons, "nine")
    scores.save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:5], b"", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(UserError, match="holds no teacher's scores"):
            Scores.open(path, lessons, "nine")
    with pytest.raises(UserError, match="holds no teacher's scores"):
        Scores.open(tmp_path, lessons, "nine")
    tensors = {"ids": scores.ids}
    for about in (None, {"scores": "{"}, {"scores": "[]"}, {"scores": json.dumps({"form": 1})}):
        save_file(tensors, path, about)
        with pytest.raises(UserError, match="holds no teacher's scores"):
            Scores.open(path, lessons, "nine")
    path.write_bytes(whole)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["scores"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    save_file(tensors, path, {"scores": json.dumps(about | {"form": 2})})
    with pytest.raises(UserError, match="another version"):
        Scores.open(path, lessons, "nine")


def test_an_engine_that_gives_fewer_tokens_than_asked_is_told(lessons: list[Lesson], teacher: Pupil) -> None:
    class Short(_Server):
        def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
            return super().score(prompts, continuations, min(top, 20))

    server: Any = Short(teacher.tokenizer)
    with pytest.raises(UserError, match="gives 20 best tokens") as told:
        Scores.of_engine(server, lessons, teacher.tokenizer, top_k=64)
    assert "top_k" in told.value.hint
    assert Scores.of_engine(server, lessons, teacher.tokenizer, top_k=20).top_k == 20
