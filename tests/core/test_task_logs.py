"""Task folders from chat logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserError
from supertiny.core.records import Call
from supertiny.core.task import DESCRIPTION, load_task
from supertiny.core.task_import import new_from_logs


def _log(text: str, call: dict[str, object] | None) -> dict[str, object]:
    answer: dict[str, object] = {"role": "assistant", "content": "I cannot do that."}
    after: list[dict[str, object]] = []
    if call is not None:
        asked = {"name": "set_lamp", "arguments": json.dumps(call)}
        answer = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": asked}],
        }
        after = [{"role": "tool", "tool_call_id": "1", "content": "ok"}, {"role": "assistant", "content": "Done."}]
    return {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}, answer, *after]}


def test_chat_logs_become_a_task(tmp_path: Path) -> None:
    animals = ["cat", "dog", "fox", "hen", "owl", "rat", "bee", "ant", "cow", "pig"]
    logs = [
        _log(f"set the lamp near the {a} to {n}", {"room": "hall", "level": n}) for n, a in enumerate(animals * 2, 10)
    ]
    logs += [_log(f"what does a {a} eat in winter", None) for a in animals]
    logs += [logs[0]]
    (tmp_path / "logs.jsonl").write_text("\n".join(json.dumps(row) for row in logs))
    counts = new_from_logs(tmp_path / "logs.jsonl", tmp_path / "task", seed=3)
    assert sum(counts.values()) == 30
    task = load_task(tmp_path / "task")
    assert {tool.name for tool in task.tools} == {"set_lamp"}
    for example in (*task.labelled, *task.valid, *task.test):
        assert example.answer is not None
        assert bool(example.answer.calls) == example.request.text.startswith("set")
        assert [m["role"] for m in example.request.messages] == ["user"]
    assert task.description == "Be brief."  # what every log begins with
    again = new_from_logs(tmp_path / "logs.jsonl", tmp_path / "again", seed=3)
    assert again == counts
    assert (tmp_path / "again/test.jsonl").read_bytes() == (tmp_path / "task/test.jsonl").read_bytes()


def test_a_system_message_that_all_logs_share_becomes_the_description(tmp_path: Path) -> None:
    def log(number: int, system: str) -> dict[str, Any]:
        arguments = json.dumps({"area": f"area {number % 3}"})
        call = {"id": "1", "type": "function", "function": {"name": "TurnOn", "arguments": arguments}}
        words = f"{'abcdefghijklmnopqrstuvwxyz'[number] * 9} {number * 7919}"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": words}]
        return {"messages": messages, "tool_calls": [call]}  # the answer beside the messages

    for name, system in (("same", lambda n: "You are a home."), ("other", lambda n: f"It is {n} o'clock.")):
        lines = [json.dumps(log(number, system(number))) for number in range(16)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        assert sum(new_from_logs(tmp_path / f"{name}.jsonl", tmp_path / name).values()) == 16
    same, other = load_task(tmp_path / "same"), load_task(tmp_path / "other")
    assert same.description == "You are a home."
    assert [message["role"] for message in same.labelled[0].request.messages] == ["user"]
    assert same.labelled[0].answer is not None
    assert same.labelled[0].answer.calls[0].tool == "TurnOn"
    assert other.description == DESCRIPTION
    assert [message["role"] for message in other.labelled[0].request.messages] == ["system", "user"]


def test_older_logs_and_answers_beside_a_conversation(tmp_path: Path) -> None:
    def words(number: int) -> str:
        return f"{'abcdefghijklmnopqrstuvwxyz'[number] * 9} {number * 7919}"

    go = {"name": "Go", "arguments": '{"to": "bed"}'}
    takes = {"type": "object", "properties": {"to": {"type": "string"}}}
    logs: list[dict[str, Any]] = []
    for number in range(16):
        asked = [
            {"role": "developer", "content": f"It is {number} o'clock."},
            {"role": "user", "content": words(number)},
        ]
        if number % 2:  # what OpenAI wrote before tool_calls
            answer = {"role": "assistant", "content": None, "function_call": go}
            logs.append(
                {
                    "messages": [*asked, answer],
                    "functions": [{"name": "Go", "description": "Goes.", "parameters": takes}],
                }
            )
        else:  # an earlier turn was answered; this answer stands beside
            before = [{"role": "user", "content": f"hello {words(number)}"}, {"role": "assistant", "content": "yes?"}]
            logs.append({"messages": [*before, *asked], "tool_calls": [{"function": go}]})
    (tmp_path / "logs.jsonl").write_text("\n".join(map(json.dumps, logs)))
    new_from_logs(tmp_path / "logs.jsonl", tmp_path / "task")
    task = load_task(tmp_path / "task")
    rows = [*task.labelled, *task.valid, *task.test]
    assert all(e.answer is not None and e.answer.calls == (Call("Go", {"to": "bed"}),) for e in rows)
    assert {len(e.request.messages) for e in rows} <= {2, 4}
    assert task.tools[0].description == "Goes."

    logs[3]["messages"][-1] = {"role": "assistant", "content": None}
    (tmp_path / "logs.jsonl").write_text("\n".join(map(json.dumps, logs)))
    with pytest.raises(UserError, match=r"row 4: .*without words and calls"):
        new_from_logs(tmp_path / "logs.jsonl", tmp_path / "broken")
