"""Examples, tables and conversations become tasks that load; what is broken is told by row."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.recipe import read_recipe
from supertiny.core.records import Call
from supertiny.core.tables import Table, read_table
from supertiny.core.task import Task, load_task
from supertiny.core.task_import import Columns, copy_example, new_task
from supertiny.core.task_rows import SPLITS

ANIMALS = ("cat", "dog", "fox", "hen", "owl", "rat", "bee", "ant", "cow", "pig", "yak", "emu", "eel", "cod", "jay")
PLACES = ["attic", "barn", "cellar", "den", "east", "field", "garden", "hall"]


def requests() -> list[str]:
    return [f"where does the {animal} sleep in the {place}" for animal in ANIMALS for place in PLACES]


def table(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Table:
    path = folder / name
    if name.endswith(".csv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return read_table(path)


def answers(task: Task) -> dict[str, tuple[Call, ...]]:
    """Calls by request, of all splits."""
    given = {e.request.text: task.pool_gold[e.request.id] for e in task.unlabelled}
    for example in (*task.labelled, *task.valid, *task.test):
        assert example.answer is not None
        given[example.request.text] = example.answer.calls
    return given


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_labels_become_one_function_with_all_of_them(tmp_path: Path, name: str) -> None:
    rows = [{"text": text, "label": f"kind {n % 4}"} for n, text in enumerate(requests())]
    counts = new_task(table(tmp_path, rows, name), tmp_path / "task", seed=3)
    task = load_task(tmp_path / "task")
    (tool,) = task.tools
    assert (tool.name, tool.parameters["required"]) == ("classify", ["label"])
    assert tool.parameters["properties"]["label"]["enum"] == [f"kind {n}" for n in range(4)]
    assert answers(task) == {row["text"]: (Call("classify", {"label": row["label"]}),) for row in rows}
    assert sum(counts.values()) == len(rows)
    for split in ("labelled", "valid", "test"):  # no label is lost to chance
        kinds = Counter(e.answer.calls[0].arguments["label"] for e in getattr(task, split) if e.answer)
        assert len(kinds) == 4
        assert max(kinds.values()) - min(kinds.values()) <= 1
    assert "classify" in task.description


def test_the_seed_decides_and_sizes_are_kept(tmp_path: Path) -> None:
    rows = [{"text": text, "label": f"kind {n % 2}"} for n, text in enumerate(requests())]
    made = table(tmp_path, rows)
    sizes = {"labelled": 30, "test": 20}
    first = new_task(made, tmp_path / "a", seed=1, sizes=sizes)
    assert (first["labelled"], first["test"], sum(first.values())) == (30, 20, 120)
    assert first["unlabelled"] == pytest.approx(3 * first["valid"], abs=2)  # the rest by their usual shares
    new_task(made, tmp_path / "b", seed=1, sizes=sizes)
    new_task(made, tmp_path / "c", seed=2, sizes=sizes)
    texts = {name: (tmp_path / name / "test.jsonl").read_bytes() for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]
    with pytest.raises(UserError, match="120 different requests, too few for labelled 300"):
        new_task(made, tmp_path / "d", sizes={"labelled": 300})
    assert not (tmp_path / "d").exists()


def test_the_same_request_is_taken_once_and_twins_stay_on_one_side(tmp_path: Path) -> None:
    rows = [{"text": text, "label": f"kind {n % 2}"} for n, text in enumerate(requests())]
    twins = [{**row, "text": row["text"].upper() + " !"} for row in rows]
    near = [{**row, "text": f"please tell me kindly where it is that {row['text']} at night"} for row in rows]
    nearer = [{**row, "text": row["text"].replace("tell me", "tell  mee")} for row in near]
    counts = new_task(table(tmp_path, [*rows, *twins, *near, *nearer]), tmp_path / "task")
    assert sum(counts.values()) == 3 * len(rows)
    load_task(tmp_path / "task")  # it refuses leaks


def test_columns_become_arguments_of_their_kinds(tmp_path: Path) -> None:
    rows = [
        {
            "q": text,
            "place": PLACES[n % 8],
            "night": n % 60,
            "price": f"{n % 7}.50" if n % 3 else "",
            "code": f"00{n % 9}",
            "tags": '["a", "b"]' if n % 2 else "",
            "sure": "True",
        }
        for n, text in enumerate(requests())
    ]
    rows[5] |= dict.fromkeys(list(rows[0])[1:], "")
    columns = Columns(text="q", arguments=("place", "night", "price", "code", "tags", "sure"))
    new_task(table(tmp_path, rows, "rows.csv"), tmp_path / "task", columns)
    task = load_task(tmp_path / "task")
    (tool,) = task.tools
    kinds = {name: schema["type"] for name, schema in tool.parameters["properties"].items()}
    assert (tool.name, kinds) == (
        "extract",
        {
            "place": "string",
            "night": "integer",
            "price": "number",
            "code": "string",
            "tags": "array",
            "sure": "boolean",
        },
    )
    assert sorted(tool.parameters["required"]) == ["code", "night", "place", "sure"]
    given = answers(task)
    assert given[rows[5]["q"]] == ()
    (call,) = given[rows[1]["q"]]
    assert call.arguments == {
        "place": "barn",
        "night": 1,
        "price": 1.5,
        "code": "001",
        "tags": ["a", "b"],
        "sure": True,
    }


def test_calls_as_text_or_values_and_tools_of_each_row(tmp_path: Path) -> None:
    def row(n: int, text: str) -> dict[str, Any]:
        call = {"name": f"f{n % 3}", "arguments": {"n": n}}
        tools = [{"name": f"f{i}", "parameters": {"n": {"type": "int"}}} for i in (n % 3, 3)]
        return {"text": text, "answers": json.dumps([call]) if n % 2 else call, "tools": json.dumps(tools)}

    rows = [row(n, text) for n, text in enumerate(requests())]
    new_task(table(tmp_path, rows), tmp_path / "task", Columns(calls="answers"))
    task = load_task(tmp_path / "task")
    assert {tool.name for tool in task.tools} == {"f0", "f1", "f2", "f3"}
    assert answers(task) == {row["text"]: (Call(f"f{n % 3}", {"n": n}),) for n, row in enumerate(rows)}
    example = task.labelled[0]
    assert example.answer is not None
    assert {tool.name for tool in example.request.tools} == {example.answer.calls[0].tool, "f3"}
    assert example.request.tools[0].parameters["properties"] == {"n": {"type": "integer"}}


def test_tools_that_all_rows_share_are_the_tasks(tmp_path: Path) -> None:
    tools = [{"name": "f", "description": "does it", "parameters": {"type": "object", "properties": {"n": {}}}}]
    rows = [
        {"text": t, "calls": [{"name": "f", "arguments": {"n": n}}], "tools": tools} for n, t in enumerate(requests())
    ]
    new_task(table(tmp_path, rows), tmp_path / "task")
    task = load_task(tmp_path / "task")
    assert [tool.description for tool in task.tools] == ["does it"]
    assert not any(e.request.tools for split in SPLITS for e in getattr(task, split))


def test_chats_in_a_table_are_logs(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "no"}]} for text in requests()
    ]
    rows[0]["messages"][1]["tool_calls"] = [{"function": {"name": "f", "arguments": "{}"}}]  # type: ignore[assignment]
    new_task(table(tmp_path, rows), tmp_path / "task")
    assert [tool.name for tool in load_task(tmp_path / "task").tools] == ["f"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(text="txt"), "--text: {} has no column 'txt' (did you mean 'text'?)"),
        (Columns(label="lable"), "--label: {} has no column 'lable' (did you mean 'label'?)"),
        (Columns(arguments=("place", "label")), "--argument: {} has no column 'place'"),
        (Columns(label="label", calls="label"), "--label, --argument and --calls do not go together"),
    ],
)
def test_columns_that_are_not_there_are_told(tmp_path: Path, columns: Columns, words: str) -> None:
    made = table(tmp_path, [{"text": text, "label": "a"} for text in requests()])
    with pytest.raises(UserError) as told:
        new_task(made, tmp_path / "task", columns)
    assert words.format(made.source) in str(told.value)
    assert not (tmp_path / "task").exists()


def test_a_table_whose_answer_is_not_said(tmp_path: Path) -> None:
    made = table(tmp_path, [{"utterance": text, "intent": "a"} for text in requests()])
    with pytest.raises(UserErrors) as told:
        new_task(made, tmp_path / "task")
    answer, text = (str(error) for error in told.value.errors)
    assert "--text: " in text
    assert "has no column 'text'" in text
    assert "say --label, --argument or --calls; its columns: utterance, intent" in answer


def test_broken_rows_are_told_with_their_place_or_left_out(tmp_path: Path) -> None:
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}]
    rows: list[dict[str, Any]] = [
        {"text": text, "calls": [{"name": "f", "arguments": {"n": n}}], "tools": tools}
        for n, text in enumerate(requests())
    ]
    rows[1]["text"] = " "
    rows[2]["calls"] = "[{"
    rows[3]["calls"] = [{"arguments": {}}]
    rows[4]["calls"] = [{"name": "f", "arguments": {"n": "many"}}]
    rows[5]["tools"] = [{"name": "f", "parameters": {"type": "object", "properties": {"n": {"$ref": "#"}}}}]
    made = table(tmp_path, rows)
    with pytest.raises(UserErrors) as told:
        new_task(made, tmp_path / "task")
    lines = [str(error) for error in told.value.errors]
    for line, place, words in zip(
        lines,
        range(2, 7),
        (
            "'text' holds no text: ' '",
            "broken JSON within: ",
            "has no 'name'",
            "'many' is not of type 'integer'",
            "is recursive",
        ),
        strict=False,
    ):
        assert line.startswith(f"{made.source}:{place}: ")
        assert words in line
    assert lines[-1] == f"{made.source}: 5 broken rows in all (--skip-broken leaves them out)"
    counts = new_task(made, tmp_path / "task", skip_broken=True)
    assert sum(counts.values()) == len(rows) - 5


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (lambda n: "one", "1 different labels in 120 rows (two classes or more"),
        (lambda n: f"own {n}", "120 different labels in 120 rows (two classes or more, of several rows each"),
        (lambda n: "" if n == 3 else n % 2, "the column 'label' holds no label: ''"),
        (lambda n: None if n == 3 else n % 2, "the column 'label' holds no label: None"),
    ],
)
def test_labels_that_are_none_are_told(tmp_path: Path, label: Any, words: str) -> None:
    made = table(tmp_path, [{"text": text, "label": label(n)} for n, text in enumerate(requests())])
    with pytest.raises(UserError) as told:
        new_task(made, tmp_path / "task")
    assert words in str(told.value)


def test_too_few_rows(tmp_path: Path) -> None:
    made = table(tmp_path, [{"text": f"row {n}", "label": str(n % 2)} for n in range(5)])
    with pytest.raises(UserError, match=r"has 5 different requests \(a task needs at least 8\)"):
        new_task(made, tmp_path / "task")


@pytest.mark.parametrize("columns", [Columns(), Columns(arguments=("label", "n"))])
def test_a_data_sets_own_test_stays_its_test(tmp_path: Path, columns: Columns) -> None:
    rows = [{"text": text, "label": f"kind {n % 3}", "n": n} for n, text in enumerate(requests())]
    own = [{**row, "text": f"tell me now, {row['text']} or rather elsewhere?"} for row in rows[:20]]
    twins = [{**own[n], "text": own[n]["text"].upper()} for n in range(5)]
    own[19]["label"] = "kind of its own"
    test = table(tmp_path, [*own, own[0]], "test.csv")
    made = table(tmp_path, [*rows, *twins], "train.csv")
    counts = new_task(made, tmp_path / "task", columns, sizes={"labelled": 30}, test=test)
    assert (counts["test"], counts["labelled"], sum(counts.values())) == (20, 30, 140)
    task = load_task(tmp_path / "task")
    assert {example.request.text for example in task.test} == {row["text"] for row in own}
    if not columns.arguments:
        assert "kind of its own" in task.tools[0].parameters["properties"]["label"]["enum"]
    else:
        assert "kind of its own" not in json.dumps([tool.to_openai() for tool in task.tools])
    with pytest.raises(UserError, match="test has rows of its own"):
        new_task(made, tmp_path / "more", columns, sizes={"test": 3}, test=test)


def test_where_all_sizes_are_said_the_rest_is_left_out(tmp_path: Path) -> None:
    made = table(tmp_path, [{"text": text, "label": f"kind {n % 2}"} for n, text in enumerate(requests())])
    sizes = {"labelled": 20, "unlabelled": 20, "valid": 10, "test": 10}
    counts = new_task(made, tmp_path / "task", sizes=sizes)
    assert all(abs(counts[split] - size) <= 1 for split, size in sizes.items())


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
    counts = new_task(read_table(tmp_path / "logs.jsonl"), tmp_path / "task", seed=3)
    assert sum(counts.values()) == 30
    task = load_task(tmp_path / "task")
    assert {tool.name for tool in task.tools} == {"set_lamp"}
    for example in (*task.labelled, *task.valid, *task.test):
        assert example.answer is not None
        assert bool(example.answer.calls) == example.request.text.startswith("set")
        assert [m["role"] for m in example.request.messages] == ["user"]
    assert task.description == "Be brief."  # what every log begins with
    again = new_task(read_table(tmp_path / "logs.jsonl"), tmp_path / "again", seed=3)
    assert again == counts
    assert (tmp_path / "again/test.jsonl").read_bytes() == (tmp_path / "task/test.jsonl").read_bytes()


def test_broken_logs_are_told_by_row(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "x"}]}, {"message": 1}]
    (tmp_path / "logs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(UserErrors) as caught:
        new_task(read_table(tmp_path / "logs.jsonl"), tmp_path / "task")
    first, second, last = (str(error) for error in caught.value.errors)
    assert first.endswith("logs.jsonl:1: has no assistant's message after a user's and no tool_calls, so no answer")
    assert second.endswith("logs.jsonl:2: has no messages")
    assert last.endswith("2 broken rows in all (--skip-broken leaves them out)")
    assert not (tmp_path / "task").exists()


def test_what_was_asked_after_the_last_answer_is_no_request(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "no"}
    more = [
        {"role": "tool", "content": "x"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "y"},
    ]
    rows = [
        {
            "messages": [
                {"role": "user", "content": text},
                said,
                *(more * (n % 2)),
                {"role": "user", "content": "hello?"},
            ]
        }
        for n, text in enumerate(requests())
    ]
    rows[0]["messages"][1] = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    new_task(table(tmp_path, rows), tmp_path / "task")
    task = load_task(tmp_path / "task")
    lengths = {len(e.request.messages) for split in SPLITS for e in getattr(task, split)}
    assert lengths == {1, 4}
    assert {e.answer.text for e in task.labelled if e.answer} <= {"no", "y", ""}


def test_an_example_is_copied_out_and_opens(tmp_path: Path) -> None:
    copy_example("smart_home", tmp_path / "mine")
    assert load_task(tmp_path / "mine").tools
    assert load_task(tmp_path / "mine").name == "mine"
    with pytest.raises(UserError, match="not empty"):
        copy_example("smart_home", tmp_path / "mine")
    with pytest.raises(UserError, match="smart_home"):
        copy_example("smarthome", tmp_path / "other")


def test_a_copied_recipe_runs_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy_example("smart_home", Path("mine"))
    recipe = read_recipe(Path("mine/recipe.yaml"))
    assert (recipe.name, recipe.task, recipe.folder) == ("mine", Path("mine"), Path("runs/mine"))
    assert recipe.sections["prototype"]["steps"]
