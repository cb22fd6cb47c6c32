"""Task folders from chat logs, today's and older ones, and from rows of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserErrors
from supertiny.core.files import read_rows
from supertiny.core.records import Answer, Call, Example, Request
from supertiny.core.tables import Table, read_table
from supertiny.core.task import DESCRIPTION, load_task
from supertiny.core.task_import import Columns, new_task
from supertiny.core.task_rows import SPLITS


def table(folder: Path, rows: list[dict[str, Any]]) -> Table:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return read_table(path)


def words(number: int) -> str:
    return f"{'abcdefghijklmnopqrstuvwxyz'[number] * 9} {number * 7919}"


def tool(name: str, kind: str = "integer") -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"n": {"type": kind}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def chat(number: int, answer: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": words(number)}, {"role": "assistant", **answer}], **more}


def calling(name: str, **arguments: Any) -> dict[str, Any]:
    return {"tool_calls": [{"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}]}


def examples_of(folder: Path) -> dict[str, Example]:
    """Rows of all splits by what was asked, with their gold."""
    task = load_task(folder)
    pool = [
        Example(row.request, Answer(task.pool_gold[row.request.id]), None, row.provenance) for row in task.unlabelled
    ]
    return {row.request.text: row for row in (*task.labelled, *pool, *task.valid, *task.test)}


def test_conversations_keep_their_own_functions_where_they_differ(tmp_path: Path) -> None:
    rows = [chat(n, calling(f"f{n % 2}", n=n), tools=[tool(f"f{n % 2}"), tool("other")]) for n in range(16)]
    new_task(table(tmp_path, rows), tmp_path / "task")
    found = examples_of(tmp_path / "task")
    for n in range(16):
        assert [own.name for own in found[words(n)].request.tools] == [f"f{n % 2}", "other"]
    shuffled = [chat(n, calling("f0", n=n), tools=[tool("f0"), tool("f1")][:: 1 if n % 2 else -1]) for n in range(16)]
    new_task(table(tmp_path, shuffled), tmp_path / "same")
    assert not any(row.request.tools for row in examples_of(tmp_path / "same").values()), (
        "the order makes no difference"
    )


def test_rows_without_functions_are_held_against_those_of_others(tmp_path: Path) -> None:
    rows = [chat(n, calling("f", n=n), tools=[tool("f")]) for n in range(16)] + [chat(16, calling("f", n="many"))]
    made = table(tmp_path, rows)
    with pytest.raises(UserErrors) as told:
        new_task(made, tmp_path / "task")
    assert str(told.value.errors[0]).startswith(f"{made.source}:17: f: n: 'many' is not of type 'integer'")
    assert sum(new_task(made, tmp_path / "task", skip_broken=True).values()) == 16
    load_task(tmp_path / "task")


def test_logs_of_before_tool_calls_are_read(tmp_path: Path) -> None:
    def old(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"content": None, "function_call": {"name": name, "arguments": json.dumps(arguments)}}

    rows = [chat(n, old("f", {"n": n}), functions=[tool("f")["function"]]) for n in range(16)]
    again = {"role": "user", "content": "and once more"}
    done = {"role": "function", "name": "f", "content": "done"}
    rows[0]["messages"] = [*rows[0]["messages"], done, again, {"role": "assistant", **old("f", {"n": 99})}]
    rows[1] = {"messages": rows[1]["messages"][:1], "function_call": old("f", {"n": 1})["function_call"]}
    new_task(table(tmp_path, rows), tmp_path / "task")
    found = examples_of(tmp_path / "task")
    for n in range(1, 16):
        assert found[words(n)].answer == Answer((Call("f", {"n": n}),))
    longer = found["and once more"]
    assert longer.answer == Answer((Call("f", {"n": 99}),))
    assert [message["role"] for message in longer.request.messages] == ["user", "assistant", "tool", "user"]
    call, result = longer.request.messages[1]["tool_calls"][0], longer.request.messages[2]
    assert call["id"] == result["tool_call_id"]
    assert [known.name for known in load_task(tmp_path / "task").tools] == ["f"]


def test_an_answer_that_says_nothing_at_all_is_a_broken_row(tmp_path: Path) -> None:
    rows = [chat(n, calling("f", n=n)) for n in range(16)]
    rows += [chat(16, {"content": None}), chat(17, {}), chat(18, {"content": None, "refusal": "No."})]
    none_beside = {"messages": [{"role": "user", "content": words(20)}], "tool_calls": []}
    made = table(tmp_path, [*rows, chat(19, {"content": ""}), none_beside])
    with pytest.raises(UserErrors) as told:
        new_task(made, tmp_path / "task")
    first, second, _ = map(str, told.value.errors)
    assert first == f"{made.source}:17: the assistant's answer has neither content nor calls"
    assert second.startswith(f"{made.source}:18: ")
    assert sum(new_task(made, tmp_path / "task", skip_broken=True).values()) == 19


def test_rows_of_ours_keep_what_they_say_of_themselves(tmp_path: Path) -> None:
    provenance = {"source": "expand", "origin": "seed", "made_by": "expand"}
    rows = [
        Example(
            Request.from_text(words(n), f"row {n}"),
            Answer((Call("f", {"n": n}),) if n else (), "Hm."),
            None,
            provenance,
        )
        for n in range(16)
    ]
    written = [row.to_json() for row in rows]
    written.append({**written[3], "messages": [{"role": "user", "content": words(20)}]})
    unread = Example(Request.from_text(words(21), "unread"), Answer(readable=False)).to_json()
    made = table(tmp_path, [*written, unread])
    assert sum(new_task(made, tmp_path / "task", skip_broken=True).values()) == 17, (
        "what nobody could read is no answer"
    )
    lines = [row for split in SPLITS for row in read_rows(tmp_path / "task" / f"{split}.jsonl")]
    by_text = {row["messages"][0]["content"]: row for row in lines}
    for n, row in enumerate(rows):
        line = by_text[words(n)]
        assert line["provenance"] == {**provenance, "from": f"{made.source}:{n + 1}"}
        assert (line["text_answer"], line["calls"]) == ("Hm.", row.to_json()["calls"])
        assert line.get("id") == (None if n == 3 else f"row {n}"), "an id that two rows have tells neither apart"
    load_task(tmp_path / "task")


def test_every_row_says_where_it_came_from(tmp_path: Path) -> None:
    made = table(tmp_path, [{"said": words(n), "kind": str(n % 2)} for n in range(16)])
    new_task(made, tmp_path / "task", Columns(text="said", label="kind"))
    found = examples_of(tmp_path / "task")
    assert {text: row.provenance["from"] for text, row in found.items()} == {
        words(n): f"{made.source}:{n + 1}" for n in range(16)
    }


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
        assert sum(new_task(read_table(tmp_path / f"{name}.jsonl"), tmp_path / name).values()) == 16
    same, other = load_task(tmp_path / "same"), load_task(tmp_path / "other")
    assert same.description == "You are a home."
    assert [message["role"] for message in same.labelled[0].request.messages] == ["user"]
    assert same.labelled[0].answer is not None
    assert same.labelled[0].answer.calls[0].tool == "TurnOn"
    assert other.description == DESCRIPTION
    assert [message["role"] for message in other.labelled[0].request.messages] == ["system", "user"]
