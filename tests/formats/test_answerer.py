"""A model behind a format: what it is asked, and what becomes of each kind of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from supertiny.core.methods import build
from supertiny.core.records import Call, Completion, Price, Prompt, Request, Sampling, Tool
from supertiny.formats._answerer import ModelAnswerer
from tests.small_task import small_task

TOOLS = small_task().tools


@dataclass
class Scripted:
    """Writes what it was told to, prompt by prompt."""

    written: list[Completion]
    name: str = "scripted"
    price: Price = Price(dollars_per_million_in=1.0, dollars_per_million_out=2.0)
    seen: list[tuple[Sequence[Prompt], Sampling, Any]] = field(default_factory=list)

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling, grammar: Any = None, done: Any = None) -> Any:
        self.seen.append((prompts, sampling, grammar))
        given, self.written = self.written[: len(prompts)], self.written[len(prompts) :]
        return given


def answers(written: list[Completion], **more: Any) -> tuple[Any, Scripted]:
    engine = Scripted(written)
    requests = [Request.from_text(f"request {i}") for i in range(len(written))]
    return ModelAnswerer("student", engine, build("formats", "compact"), TOOLS, **more).answer(requests), engine  # type: ignore[arg-type]


def test_calls_text_and_cost_come_through() -> None:
    first = Completion("TurnOn area Attic", 10, 4, 0, logprob=0.0)
    second = Completion("~ not here".replace("~ ", "~"), 20, 2, 0, logprob=-2.0)
    (call, words), engine = answers([first, second], constrained=False)
    assert call.calls == (Call("TurnOn", {"area": "Attic"}),)
    assert (words.calls, words.text, words.by) == ((), "not here", "student")
    assert (call.confidence, words.confidence) == (1.0, pytest.approx(0.3679, abs=1e-3))
    assert call.cost.dollars == pytest.approx((10 * 1 + 4 * 2) / 1e6)
    assert (call.cost.tokens_in, call.cost.tokens_out) == (10, 4)
    prompts, sampling, grammar = engine.seen[0]
    assert [prompt.text for prompt in prompts] == ["request 0\n>", "request 1\n>"]
    assert sampling.stop == ("<|im_end|>",)
    assert not grammar


@pytest.mark.parametrize("logprob", [math.nan, math.inf, -math.inf])
def test_what_is_no_log_probability_makes_nobody_sure(logprob: float) -> None:
    (answer,), _ = answers([Completion("TurnOn area Attic", 10, 4, logprob=logprob)], constrained=False)
    assert answer.confidence == 0.0


@pytest.mark.parametrize("text", ['TurnOn area "Attic', "", "TurnOn area"])
def test_what_cannot_be_read_is_an_answer_without_calls(text: str) -> None:
    (answer,), _ = answers([Completion(text)], constrained=False)
    assert (answer.calls, answer.text, answer.raw, answer.confidence) == ((), "", text, None)
    assert not answer.readable


def test_a_call_that_was_cut_off_is_not_made() -> None:
    (answer,), _ = answers([Completion("TurnOn area Att", finish="length")], constrained=False)
    assert answer.calls == ()
    assert answer.raw == "TurnOn area Att"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("compact", "Track id 12345", "12345"),
        ("compact", "Track id 1.10", "1.10"),
        ("chat_json", '[{"name": "Track", "arguments": {"id": 12345}}]', "12345"),
    ],
)
def test_arguments_are_of_the_kind_that_the_schema_names(name: str, text: str, value: str) -> None:
    track = Tool("Track", "", {"type": "object", "properties": {"id": {"type": "string"}}})
    engine: Any = Scripted([Completion(text)])
    answerer = ModelAnswerer("student", engine, build("formats", name), [track], constrained=False)
    (answer,) = answerer.answer([Request.from_text("where is it")])
    assert answer.calls == (Call("Track", {"id": value}),)
    assert answer.readable


def test_a_call_that_the_schema_refuses_is_not_made_where_the_model_is_held_to_it() -> None:
    lamp = Tool("Dim", "", {"type": "object", "properties": {"kelvin": {"type": "integer", "maximum": 10000}}})
    form, request = build("formats", "compact"), Request.from_text("white")
    for constrained, calls in ((True, ()), (False, (Call("Dim", {"kelvin": 20000}),))):
        engine: Any = Scripted([Completion("Dim kelvin 20000"), Completion("Dim kelvin 20000")])
        (answer,) = ModelAnswerer("student", engine, form, [lamp], constrained=constrained).answer([request])
        assert (answer.calls, answer.readable) == (calls, not constrained)
