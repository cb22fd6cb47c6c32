"""Exported rows have the shape that other trainers read, and come back with the same calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.export import READERS, Exported, export
from supertiny.core.files import read_rows, write_json, write_rows
from supertiny.core.records import Call
from supertiny.core.tables import read_table
from supertiny.core.task import load_task
from supertiny.core.task_import import new_task
from tests.small_task import examples, write_task

SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [
    {"role": "user", "content": "light in the hall"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "own", "type": "function", "function": {"name": "TurnOn", "arguments": '{"area": "Hall"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "own", "content": "done"},
]
ASKED = {"role": "user", "content": "and now kitchen and attic"}
CALLS = [{"name": "TurnOn", "arguments": {"area": area}} for area in ("Kitchen", "Attic")]
LONG = {"id": "long", "messages": [SYSTEM, *EARLIER, ASKED], "calls": CALLS}
NONE = {"text": "who won the match", "calls": [], "text_answer": "I cannot say."}
SILENT = {"text": "hm", "calls": []}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    folder = write_task(tmp_path / "task")
    rows = read_rows(folder / "labelled.jsonl")
    write_rows(folder / "labelled.jsonl", [LONG, NONE, SILENT, *rows])
    return folder


def exported(source: Path, style: str = "messages", split: str | None = None) -> list[dict[str, Any]]:
    target = source.parent / f"{style}-{split}.jsonl"
    done = export(source, target, style, split)
    rows = read_rows(target)
    assert done.rows == len(rows)
    return rows


def calls_by_text(rows: list[dict[str, Any]]) -> dict[str, list[Call]]:
    texts = (row.get("text") or row["messages"][-1]["content"] for row in rows)
    return {text: [Call.from_json(call) for call in row["calls"]] for text, row in zip(texts, rows, strict=True)}


def test_messages_hold_calls_as_objects_and_the_tools(task: Path) -> None:
    long, none, silent, first, *_ = exported(task)
    assert [message["role"] for message in long["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "user",
        "assistant",
    ]
    assert long["messages"][2]["tool_calls"] == [
        {"id": "own", "type": "function", "function": {"name": "TurnOn", "arguments": {"area": "Hall"}}}
    ]
    assert long["messages"][-1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": f"call0000{n}", "type": "function", "function": call} for n, call in enumerate(CALLS)],
    }
    assert all(isinstance(message["content"], str) for row in (long, none, first) for message in row["messages"])
    assert none["messages"][-1] == {"role": "assistant", "content": "I cannot say."}
    assert silent["messages"][-1] == {"role": "assistant", "content": ""}
    tools = json.loads(first["tools"])
    assert [tool["function"]["name"] for tool in tools] == ["TurnOn", "TurnOff", "Dim"]
    assert tools[0]["function"]["parameters"]["required"] == ["area"]


def test_sharegpt_takes_turns_and_keeps_system_and_tools_apart(task: Path) -> None:
    long, none, _, first, *_ = exported(task, "sharegpt")
    assert [turn["from"] for turn in long["conversations"]] == [
        "human",
        "function_call",
        "observation",
        "function_call",
    ]
    assert json.loads(long["conversations"][1]["value"]) == {"name": "TurnOn", "arguments": {"area": "Hall"}}
    assert long["conversations"][2]["value"] == "done\nand now kitchen and attic"
    assert json.loads(long["conversations"][3]["value"]) == CALLS
    assert (long["system"], none["system"]) == ("Be brief.", "")
    assert none["conversations"][-1] == {"from": "gpt", "value": "I cannot say."}
    assert [tool["name"] for tool in json.loads(first["tools"])] == ["TurnOn", "TurnOff", "Dim"]
    for row in exported(task, "sharegpt", "valid"):
        sides = [turn["from"] in ("human", "observation") for turn in row["conversations"]]
        assert sides == [True, False]


def free_task(folder: Path, *arguments: dict[str, Any]) -> Path:
    """A task with one function that takes anything, and labelled rows that call it with these."""
    tool = {"name": "Set", "parameters": {"type": "object", "additionalProperties": True}}
    write_task(folder)
    write_json(folder / "tools.json", [{"type": "function", "function": tool}])
    for split in ("valid", "test", "unlabelled"):
        rows = [{"text": row["text"], "calls": []} for row in read_rows(folder / f"{split}.jsonl")]
        write_rows(folder / f"{split}.jsonl", rows)
    calls = [[{"name": "Set", "arguments": given}] for given in arguments]
    write_rows(folder / "labelled.jsonl", [{"text": f"number {n}", "calls": call} for n, call in enumerate(calls)])
    return folder


@pytest.mark.parametrize(
    ("arguments", "is_text"),
    [
        ([{"to": 5}, {"to": 6, "area": "Hall"}, {"in": {"deep": ["a"]}}], False),
        ([{"to": 5}, {"to": "five"}], True),
        ([{"to": 5}, {"to": 5.5}], True),
        ([{"to": {"deep": [1, "a"]}}], True),
        ([{"to": ["a"]}, {"to": "a"}], True),
        ([{"to": None}], True),
        ([{"day": "2026-11-21"}], True),
    ],
)
def test_arguments_that_arrow_would_change_are_text(
    tmp_path: Path, arguments: list[dict[str, Any]], is_text: bool
) -> None:
    rows = exported(free_task(tmp_path / "task", *arguments))
    given = [row["messages"][-1]["tool_calls"][0]["function"]["arguments"] for row in rows]
    assert [json.loads(one) for one in given] == arguments if is_text else given == arguments


def test_what_is_exported_loads_as_it_was(tmp_path: Path) -> None:
    """By the line that READERS says, and by TRL's own way of taking nulls out."""
    datasets = pytest.importorskip("datasets")
    for number, arguments in enumerate(([{"to": 5}, {"area": "Hall"}], [{"to": 5}, {"to": "2026-11-21", "of": None}])):
        task = free_task(tmp_path / f"task-{number}", *arguments)
        target = tmp_path / f"{number}.jsonl"
        export(task, target)
        data = datasets.load_dataset("json", data_files=str(target), split="train", cache_dir=str(tmp_path / "cache"))
        rows = [without_nulls(row) for row in data.to_list()]
        assert rows == read_rows(target)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def test_axolotl_gets_a_list_of_tools_and_text_within(task: Path) -> None:
    long, *_ = exported(task, "axolotl")
    assert [tool["function"]["name"] for tool in long["tools"]] == ["TurnOn", "TurnOff", "Dim"]
    assert json.loads(long["tools"][0]["function"]["parameters"])["required"] == ["area"]
    given = [call["function"]["arguments"] for call in long["messages"][-1]["tool_calls"]]
    assert [json.loads(one) for one in given] == [call["arguments"] for call in CALLS]


def chat(*turns: tuple[str, str], calls: Any = ()) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns], "calls": list(calls)}


def test_sharegpt_rows_take_turns_or_are_left_out_and_lost_words_are_told(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task")
    done = {"role": "tool", "tool_call_id": "own", "content": "done"}
    chatty = {**EARLIER[1], "content": "With pleasure!"}
    rows = [
        chat(("system", "Be brief."), ("assistant", "Hello!"), ("user", "hi"), calls=CALLS),
        chat(("user", "one"), ("user", "two"), ("assistant", "a"), ("assistant", "b"), ("user", "three")),
        {"messages": [EARLIER[0], chatty, done, {"role": "assistant", "content": "ok"}, ASKED], "calls": CALLS},
        {"messages": [EARLIER[0], {"role": "assistant", "content": "so"}, chatty, done, ASKED], "calls": []},
        {"messages": [EARLIER[1], done, {"role": "user", "content": "what was that"}], "calls": []},
        {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "well"}], "calls": CALLS},
        chat(("user", "both, please"), calls=CALLS) | {"text_answer": "Here they are."},
    ]
    write_rows(folder / "labelled.jsonl", rows)
    told = export(folder, tmp_path / "out.jsonl", "sharegpt")
    assert told == Exported("labelled", 5, left_out=2, shortened=3)
    written = read_rows(tmp_path / "out.jsonl")
    for row in written:
        sides = [turn["from"] in ("human", "observation") for turn in row["conversations"]]
        assert sides == [True, False] * (len(sides) // 2), "LLaMA-Factory skips all others"
        assert row["conversations"][0]["from"] == "human"
    assert written[0]["system"] == "Be brief.\nHello!"
    assert [turn["value"] for turn in written[1]["conversations"]] == ["one\ntwo", "a\nb", "three", ""]
    assert [turn["from"] for turn in written[3]["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(written[4]["conversations"][-1]["value"]) == CALLS


@pytest.mark.parametrize("style", ["messages", "axolotl", "sharegpt"])
def test_what_is_exported_comes_back_with_the_same_calls(task: Path, tmp_path: Path, style: str) -> None:
    target = tmp_path / "logs.jsonl"
    export(task, target, style)
    counts = new_task(read_table(target), tmp_path / "again", seed=1)
    known = load_task(task)
    again = load_task(tmp_path / "again")
    rows = [row for split in counts for row in read_rows(tmp_path / "again" / f"{split}.jsonl")]
    given = {e.request.text: list(e.answer.calls) for e in known.labelled if e.answer}
    if style == "sharegpt":  # what was asked after a tool's result is one turn with it
        given.pop(ASKED["content"])
        rows = [row for row in rows if len(row["messages"]) == 1]
    assert calls_by_text(rows) == given
    assert {tool.name: tool.parameters for tool in again.tools} == {tool.name: tool.parameters for tool in known.tools}


def run_of(task: Path, folder: Path) -> Path:
    """A run's folder as far as its first stage."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(f"task: {task}\n", encoding="utf-8")
    write_json(folder / "manifest.json", {})
    return folder


def test_a_run_gives_its_training_rows(task: Path, tmp_path: Path) -> None:
    run = run_of(task, tmp_path / "run")
    with pytest.raises(UserError, match="its stage prototype is not done"):
        export(run, tmp_path / "x.jsonl")
    made = [example.to_json() for example in examples("unlabelled", 4)]
    made[3]["answer"]["readable"] = False
    write_rows(run / "prototype" / "train.jsonl", made)
    assert export(run, tmp_path / "train.jsonl") == Exported("train", 3)
    first = read_rows(tmp_path / "train.jsonl")[0]
    assert first["messages"][0]["content"] == made[0]["messages"][0]["content"]
    assert len(json.loads(first["tools"])) == 3
    assert len(exported(run, split="valid")) == len(load_task(task).valid)


def test_rows_of_test_are_never_among_others(task: Path) -> None:
    hidden = {example.request.text for example in load_task(task).test}
    for split in (None, "labelled", "valid"):
        assert not hidden & {row["messages"][-2]["content"] for row in exported(task, "messages", split)}


@pytest.mark.parametrize(
    ("source", "style", "split", "words"),
    [
        ("task", "mesages", None, "--as: there is no shape 'mesages' (did you mean 'messages'?)"),
        ("task", "messages", "vaild", "--split: 'vaild' cannot be exported (did you mean 'valid'?)"),
        ("task", "messages", "test", "--split: 'test' cannot be exported (known: labelled, train, valid)"),
        ("task", "messages", "train", "is a task, which has no 'train'"),
        ("nowhere", "messages", None, "there is no folder"),
        ("task/test.jsonl", "messages", None, "there is no folder"),
    ],
)
def test_what_cannot_be_exported_is_told(
    task: Path, tmp_path: Path, source: str, style: str, split: str | None, words: str
) -> None:
    with pytest.raises(UserError) as told:
        export(tmp_path / source, tmp_path / "out.jsonl", style, split)
    assert words in str(told.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_folder_that_is_neither_run_nor_task_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a run nor a task") as told:
        export(tmp_path, tmp_path / "out.jsonl")
    assert not isinstance(told.value, UserErrors)


def test_folders_are_not_made_far_from_here(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (tmp_path / "gone" / "out.jsonl", Path("gone/far/out.jsonl")):
        with pytest.raises(UserError, match="there is no folder"):
            export(task, target)
    assert not (tmp_path / "gone").exists()
    export(task, Path("out/rows.jsonl"))
    assert (tmp_path / "out" / "rows.jsonl").is_file()


def test_a_file_that_is_there_is_not_overwritten(task: Path, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is there already"):
        export(task, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "mine"


def test_every_shape_says_who_reads_it() -> None:
    readers = " ".join(READERS.values())
    assert all(name in readers for name in ("TRL", "Axolotl", "Unsloth", "LLaMA-Factory"))
