"""A pupil's own answers: what stock generation writes, whoever else is written beside, and judged by the verifier."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from supertiny.core.methods import build
from supertiny.core.records import Call, Example, Prompt, Request, Sampling
from supertiny.engines._torch_engine import TorchEngine
from supertiny.engines.torch import Torch
from supertiny.training.lessons import Lesson, collate, encode_lessons, encode_prompts
from supertiny.training.practice import Practice
from supertiny.training.pupil import Pupil
from supertiny.training.rollout import roll_out
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, write_student

FORM = build("formats", "compact")
TASK = small_task()


@pytest.fixture(scope="module")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> Pupil:
    return open_pupil(write_student(tmp_path_factory.mktemp("student")))


@pytest.fixture(scope="module")
def prompts(pupil: Pupil) -> list[Lesson]:
    return encode_prompts(examples("valid", 5), FORM, TASK.tools, pupil.tokenizer)


def practice(max_tokens: int = 12) -> Practice:
    return Practice(FORM, TASK.tools, TASK.verify, max_tokens=max_tokens)


def seen_by_training(
    pupil: Pupil, prompt: Lesson, answer: Sequence[int], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities of all tokens at each place of an answer, those of its own)."""
    batch = collate([Lesson((*prompt.ids, *answer), len(prompt.ids))], pupil.pad_id)
    with torch.no_grad():
        logprobs = (pupil.logits_at(batch.ids, batch.mask, batch.wanted) / temperature).log_softmax(-1)
    return logprobs, logprobs.gather(-1, batch.targets[:, None])[:, 0]


def test_greedy_answers_are_those_of_stock_generation(pupil: Pupil, prompts: list[Lesson]) -> None:
    written = roll_out(pupil, prompts, practice(), samples=1, seed=0, temperature=0)
    for prompt, (sample,) in zip(prompts, written, strict=True):
        ids = torch.tensor([prompt.ids])
        stock = pupil.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=0
        )
        assert list(sample.ids) == stock[0, len(prompt.ids) :].tolist()


def test_same_seed_same_answers_and_another_seed_others(pupil: Pupil, prompts: list[Lesson]) -> None:
    one, again, other = (
        [[sample.ids for sample in row] for row in roll_out(pupil, prompts, practice(), 4, seed)] for seed in (1, 1, 2)
    )
    assert one == again != other
    assert all(len(row) == 4 for row in one)
    assert len({ids for row in one for ids in row}) > 10, "samples differ"


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probabilities_are_those_that_training_sees(
    temperature: float, pupil: Pupil, prompts: list[Lesson]
) -> None:
    for prompt, samples in zip(prompts, roll_out(pupil, prompts, practice(), 3, 5, temperature), strict=True):
        for sample in samples:
            _, own = seen_by_training(pupil, prompt, sample.ids, temperature)
            torch.testing.assert_close(own, torch.tensor(sample.logprobs), atol=1e-4, rtol=1e-4)


def test_samples_are_drawn_by_the_models_own_probabilities(pupil: Pupil, prompts: list[Lesson]) -> None:
    (samples,) = roll_out(pupil, prompts[:1], practice(1), 4000, seed=3, at_once=4000)
    ids = torch.tensor([prompts[0].ids])
    with torch.no_grad():
        shares = pupil.model(ids).logits[0, -1].softmax(-1)
    token = int(shares.argmax())
    found = sum(sample.ids[0] == token for sample in samples) / 4000
    deviation = math.sqrt(float(shares[token] * (1 - shares[token])) / 4000)
    assert abs(found - float(shares[token])) < 4 * deviation


def test_an_answer_is_read_judged_and_ends_at_its_stop_token(pupil: Pupil) -> None:
    request = Request.from_text("light!", "r")
    rules = practice()
    calls = 'TurnOn area "Kitchen"'
    right = rules.judged(request, [5, 2], [-0.1, -0.2], FORM.write(FORM.decode(calls)), ended=True)
    assert right.answer is not None
    assert right.answer.calls == (Call("TurnOn", {"area": "Kitchen"}),)
    assert right.verdict.outcome == "pass"
    for text, ended, reason in (
        (calls, False, "cut off"),
        ("TurnOn area", True, "not in the format"),
        ("", True, "no"),
    ):
        wrong = rules.judged(request, [5], [-0.1], text, ended)
        assert not wrong.readable
        assert wrong.verdict.outcome == "fail"
        assert reason in wrong.verdict.reason


def test_the_pupil_is_left_as_it_was(pupil: Pupil, prompts: list[Lesson]) -> None:
    pupil.model.train()
    roll_out(pupil, prompts[:1], practice(2), 1, 0)
    assert pupil.model.training
    pupil.model.eval()
    before = {name: tensor.clone() for name, tensor in pupil.model.state_dict().items()}
    roll_out(pupil, prompts[:1], practice(2), 1, 0)
    assert not pupil.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in pupil.model.state_dict().items())


def test_prompts_end_where_lessons_answer(pupil: Pupil, tmp_path: Path) -> None:
    rows = examples("labelled", 3)
    lessons = encode_lessons(rows, FORM, TASK.tools, pupil.tokenizer)
    prompts = encode_prompts([Example(row.request) for row in rows], FORM, TASK.tools, pupil.tokenizer)
    assert [lesson.ids[: lesson.answer_start] for lesson in lessons] == [prompt.ids for prompt in prompts]
    assert all(prompt.answer_start == len(prompt.ids) for prompt in prompts)
    assert encode_prompts(rows, FORM, TASK.tools, pupil.tokenizer, longest=5) == []


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_virtual_tokens_stand_once_before_all_that_is_written(name: str, pupil: Pupil, prompts: list[Lesson]) -> None:
    """Samples, the engine's answers and its scores are what training sees, for prompts of unlike lengths together."""
    adapted = replace(pupil, model=build("adapters", {"method": name, "tokens": 5}).wrap(copy.deepcopy(pupil.model), 0))
    adapted.model.eval()
    assert len({len(prompt.ids) for prompt in prompts}) > 1
    engine = TorchEngine(Torch(), Path("student"), "student", adapted.model, adapted.tokenizer)
    texts = [pupil.tokenizer.decode(prompt.ids) for prompt in prompts]
    greedy = engine.complete([Prompt(text=text) for text in texts], Sampling(max_tokens=12))
    scored = engine.score([Prompt(text=text) for text in texts], ["TurnOn area Hall"] * len(texts))
    for place, (prompt, (sample,)) in enumerate(
        zip(prompts, roll_out(adapted, prompts, practice(), 1, 0, 0.0), strict=True)
    ):
        known, seen = seen_by_training(adapted, prompt, sample.ids)
        torch.testing.assert_close(seen, torch.tensor(sample.logprobs), atol=1e-4, rtol=1e-4)
        assert list(sample.ids) == known.argmax(-1).tolist()
        assert greedy[place].logprob == pytest.approx(sum(sample.logprobs), abs=1e-3)
        _, seen = seen_by_training(adapted, prompt, scored[place].tokens.tolist())
        torch.testing.assert_close(seen, torch.tensor(scored[place].token_logprobs), atol=1e-4, rtol=1e-4)
