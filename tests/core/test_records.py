"""Nouns are read back as they were written, and read what other people's files hold."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from supertiny.core.leaks import asked_text
from supertiny.core.records import Answer, Call, Cost, Example, Price, Request, Tool, Verdict

TOOL = Tool("Dim", "sets brightness", {"type": "object", "properties": {"level": {"type": "integer"}}})


def test_an_example_is_read_back_as_it_was_written() -> None:
    messages = ({"role": "system", "content": "дом"}, {"role": "user", "content": "灯 💡"})
    request = Request("r-1", messages, (TOOL,))
    answer = Answer((Call("Dim", {"level": 5}),), "done", Cost(0.1, 2.0, 30, 4, 20), "pipeline", 0.75, "Dim level 5")
    example = Example(request, answer, Verdict("pass", 0.5, "good"), {"source": "pool"})
    assert Example.from_json(json.loads(json.dumps(example.to_json()))) == example


def test_an_example_without_an_answer_has_none_and_one_without_a_call_has_an_empty_one() -> None:
    bare = Example(Request.from_text("hello", "a"))
    assert Example.from_json(bare.to_json()) == bare
    none = Example(Request.from_text("hello", "a"), Answer())
    assert "calls" not in bare.to_json()
    assert Example.from_json(none.to_json()).answer == Answer()


def test_a_tasks_own_rows_are_read() -> None:
    read = Example.from_json({"text": "dim", "calls": [{"name": "Dim", "arguments": {"level": 5}}]})
    assert read.request.text == "dim"
    assert read.answer == Answer((Call("Dim", {"level": 5}),))
    assert Example.from_json({"text": "dim"}).answer is None


def test_openai_tool_calls_are_read() -> None:
    entry = {"id": "1", "type": "function", "function": {"name": "Dim", "arguments": '{"level": 5, "where": "кухня"}'}}
    assert Call.from_json(entry) == Call("Dim", {"level": 5, "where": "кухня"})
    assert Call.from_json({"function": {"name": "Go", "arguments": ""}}) == Call("Go", {})
    assert Call.from_json({"name": "Go"}) == Call("Go", {})


def test_tools_go_to_openais_format_and_back() -> None:
    assert Tool.from_openai(TOOL.to_openai()) == TOOL
    assert Tool.from_openai({"name": "Go"}).parameters == {"type": "object", "properties": {}}


def test_the_text_of_a_request_is_its_last_user_message() -> None:
    turns = [("user", "first"), ("assistant", "ok"), ("user", "second"), ("tool", "done")]
    assert Request("", tuple({"role": role, "content": said} for role, said in turns)).text == "second"
    assert Request("", ({"role": "user", "content": None},)).text == ""
    assert Request("", ({"role": "system", "content": "x"},)).text == ""


def test_costs_add_up() -> None:
    assert Cost(0.1, 1, 2, 3, 4) + Cost(0.2, 10, 20, 30, 40) == Cost(pytest.approx(0.3), 11, 22, 33, 44)


def test_dollars_count_cached_tokens_once_at_their_own_price() -> None:
    price = Price(2.0, 8.0, 0.5, 3.6)
    # 600 fresh, 400 cached, 100 written, 10 seconds of a machine at 3.6 dollars an hour.
    assert price.dollars(1000, 100, 400, 10) == pytest.approx(600 * 2e-6 + 400 * 0.5e-6 + 100 * 8e-6 + 0.01)
    assert Price().dollars(10**9, 10**9, 0, 1e9) == 0


def test_nouns_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Call("Go").tool = "Stop"  # type: ignore[misc]


def test_content_in_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "dim it"}, {"type": "text", "text": "to 5"}]
    read = Example.from_json({"messages": [{"role": "user", "content": parts}]}).request
    assert read.text == "dim it\nto 5"
    assert read.messages == ({"role": "user", "content": "dim it\nto 5"},)
    assert asked_text([{"role": "user", "content": parts}]) == "dim it\nto 5"


def test_an_answer_that_could_not_be_read_stays_so() -> None:
    row = Example(Request.from_text("hello", "a"), Answer(raw="Dim lev", readable=False))
    assert Example.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_instructions_are_no_part_of_what_was_asked() -> None:
    told = [{"role": role, "content": f"{role} words"} for role in ("system", "developer", "user")]
    assert asked_text(told) == "user words"
