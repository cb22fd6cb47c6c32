"""Completions that keep to the grammar, where the grammar is asked for only when it was left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.ledger import Ledger
from supertiny.core.methods import build
from supertiny.core.records import Call, Completion, Grammar, Prompt, Sampling, Tool
from supertiny.formats._lawful import complete_lawfully, is_lawful
from tests.fake_engine import FakeEngine

SWITCH = Tool(
    "switch",
    "",
    {
        "type": "object",
        "properties": {"state": {"enum": ["on", "off"]}, "level": {"type": "integer", "maximum": 9}},
        "required": ["state"],
        "additionalProperties": False,
    },
)


class Author:
    """Writes `free` texts without a grammar and a lawful call under one."""

    def __init__(self, free: dict[str, str]) -> None:
        self.free = free

    def __call__(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
        return self.free[prompt.text] if grammar is None else "switch state off"


def ask(free: dict[str, str]) -> tuple[FakeEngine, list[str], list[float]]:
    engine = FakeEngine(Author(free))
    prompts = [Prompt(text=text) for text in free]
    form = build("formats", "compact")
    done = complete_lawfully(engine, prompts, Sampling(), form, [[SWITCH]] * len(prompts))
    return engine, [completion.text for completion in done], [completion.seconds for completion in done]


def test_what_stands_in_the_grammar_is_asked_for_once() -> None:
    engine, texts, _ = ask({"a": "switch state on", "b": "~", "c": "switch level 3; state off"})
    assert texts == ["switch state on", "~", "switch level 3; state off"]
    assert engine.batches == [3]


@pytest.mark.parametrize(
    "text",
    [
        "lamp state on",
        "switch state dim",
        "switch",
        "switch state on; level 12",
        "switch state on; colour red",
        "",
        "\n",
    ],
)
def test_what_left_the_grammar_is_asked_again_under_it_and_both_are_paid(text: str) -> None:
    engine, texts, seconds = ask({"good": "switch state on", "bad": text})
    assert texts == ["switch state on", "switch state off"]
    assert engine.batches == [2, 1]
    assert [asked[2] is None for asked in engine.asked] == [True, True, False]
    assert engine.asked[-1][0].text == "bad"
    assert seconds == [0.5, 1.0]


def test_a_bare_number_stands_in_the_grammar_where_text_is_wanted() -> None:
    order = Tool("order", "", {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]})
    for text in ("order id 12345", "order id 1.10", "order id true"):
        assert is_lawful(Completion(text), build("formats", "compact"), {"order": order})


def test_an_engine_that_cannot_be_bound_is_not_asked_the_same_again() -> None:
    class Unbound(FakeEngine):
        def binds(self, grammar: Grammar) -> bool:
            return grammar.kind == "json_schema"

    engine = Unbound(Author({"a": "lamp state on"}))
    ledger = Ledger(Path(":memory:"))
    done = complete_lawfully(
        ledger.wrap(engine, "test"), [Prompt(text="a")], Sampling(), build("formats", "compact"), [[SWITCH]]
    )
    assert [one.text for one in done] == ["lamp state on"]
    assert engine.batches == [1]


def test_a_range_of_whole_numbers_is_spelled_out_where_it_is_short() -> None:
    def grammar(**schema: Any) -> str:
        tool = Tool("set", "", {"type": "object", "properties": {"level": {"type": "integer", **schema}}})
        given = build("formats", "compact").grammar([tool])
        return str(given.text)

    short = grammar(minimum=5, maximum=35)
    assert '"5" | "6"' in short
    assert '"35"' in short
    assert '"36"' not in short
    assert "json-integer" not in short
    for schema in ({"minimum": 5}, {"minimum": 1000, "maximum": 10000}, {"minimum": 3, "maximum": 2}, {}):
        assert "json-integer" in grammar(**schema)


FENCE = '```json\n[\n  {"name": "switch", "arguments": {"state": "on"}}\n]\n```'
CALLS = [Call("switch", {"state": "on"})]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (FENCE, CALLS),
        (f"You would call:\n\n{FENCE}\n\nThat is all.", CALLS),
        ('```\n{"name": "switch", "arguments": {"state": "on"}}\n```', CALLS),
        (f"{FENCE}\n{FENCE}", CALLS * 2),
        ('```json\n{"name": "switch", "arguments": {"state": "on" // or off\n}}\n```', []),
        ('```json\n{"state": "on"}\n```', []),
        ("```json\n[3]\n```", []),
        ("```json\n[]\n```", []),
        (FENCE[:-4], []),
        (json.dumps(FENCE), []),
    ],
)
def test_calls_in_a_fence_are_calls(text: str, calls: list[Call]) -> None:
    form = build("formats", "chat_json")
    read = form.decode(text)
    assert list(read.calls) == calls
    assert bool(read.text) == (not calls)
    assert form.decode(form.write(read)) == read


@pytest.mark.parametrize(("words", "asked"), [(True, [2]), (False, [2, 1])])
def test_words_alone_are_asked_again_where_calls_alone_are_wanted(words: bool, asked: list[int]) -> None:
    form = build("formats", "compact")
    engine = FakeEngine(Author({"good": "switch state on", "bad": "~I would switch it on."}))
    prompts = [Prompt(text=text) for text in ("good", "bad")]
    done = complete_lawfully(engine, prompts, Sampling(), form, [[SWITCH]] * 2, words=words)
    assert engine.batches == asked
    assert [one.text for one in done] == ["switch state on", "~I would switch it on." if words else "switch state off"]
    if not words:
        assert engine.asked[-1][2] == form.grammar([SWITCH], words=False) != form.grammar([SWITCH])
