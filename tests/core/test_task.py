"""Task folders: what is read, what is refused and with which place, leaks, verdicts, inferred functions."""

import json
from pathlib import Path

import pytest

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.leaks import find_leaks, grams, jaccard, normalised
from supertiny.core.records import Call, Request, Tool
from supertiny.core.task import Task, load_task
from supertiny.core.task_tools import infer_tools, tools_from

LAMP = Tool(
    "set_lamp",
    "Sets a lamp.",
    {
        "type": "object",
        "properties": {
            "room": {"type": "string", "enum": ["kitchen", "hall"]},
            "level": {"type": "integer", "minimum": 0, "maximum": 100},
            "warmth": {"type": "number"},
        },
        "required": ["room"],
        "additionalProperties": False,
    },
)
ROWS = {
    "labelled": [
        {"text": "kitchen lamp to 40", "calls": [{"name": "set_lamp", "arguments": {"room": "kitchen", "level": 40}}]}
    ],
    "unlabelled": [
        {"text": "make it bright in the hall"},
        {"text": "свет на кухне 💡", "calls": [{"name": "set_lamp", "arguments": {"room": "kitchen"}}]},
    ],
    "valid": [
        {"text": "dim the hall please", "calls": [{"name": "set_lamp", "arguments": {"room": "hall", "level": 10}}]}
    ],
    "test": [{"text": "what a lovely day", "calls": []}],
}


def write_task(folder: Path, **changed: list[object]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tools.json").write_text(json.dumps([LAMP.to_openai()]))
    for split, rows in (ROWS | changed).items():
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def problems(folder: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_task(folder)
    error = caught.value
    return [str(one) for one in (error.errors if isinstance(error, UserErrors) else [error])]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(write_task(tmp_path / "lamps"))


def test_a_folder_without_a_card_is_read(task: Task) -> None:
    assert task.name == "lamps"
    assert task.description
    assert [len(split) for split in (task.labelled, task.unlabelled, task.valid, task.test)] == [1, 2, 1, 1]
    assert task.labelled[0].answer is not None
    assert task.labelled[0].answer.calls == (Call("set_lamp", {"room": "kitchen", "level": 40}),)
    assert task.test[0].answer is not None
    assert task.test[0].answer.calls == ()
    assert set(task.tool_map) == {"set_lamp"}


def test_gold_of_the_pool_is_hidden_and_scripts_are_kept(task: Task) -> None:
    assert [example.answer for example in task.unlabelled] == [None, None]
    cyrillic = task.unlabelled[1].request
    assert cyrillic.text == "свет на кухне 💡"
    assert task.pool_gold == {cyrillic.id: (Call("set_lamp", {"room": "kitchen"}),)}


def test_ids_are_unique_stable_and_kept_where_given(tmp_path: Path) -> None:
    rows = [{"text": "same", "id": "1"}, {"text": "other"}, {"text": "other"}]
    valid = [ROWS["valid"][0] | {"id": "1"}]
    first = load_task(write_task(tmp_path / "a", unlabelled=rows, valid=valid))
    again = load_task(write_task(tmp_path / "a", unlabelled=rows, valid=valid))
    ids = [
        example.request.id for split in ("labelled", "unlabelled", "valid", "test") for example in getattr(first, split)
    ]
    assert len(set(ids)) == len(ids)
    assert first.unlabelled[0].request.id == "1"
    assert first.valid[0].request.id == "valid-1"
    assert [e.request.id for e in first.unlabelled] == [e.request.id for e in again.unlabelled]


def test_the_hash_follows_what_means_something(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "a")
    before = load_task(folder).hash
    (folder / "README.md").write_text("words")
    (folder / "recipe.yaml").write_text("task: .")
    assert load_task(folder).hash == before
    (folder / "rooms.py").write_text("ROOMS = ('kitchen',)\n")
    with_rooms = load_task(folder).hash
    assert with_rooms != before
    (folder / "hooks.py").write_text("def verify(text, calls):\n    return 'abstain', ''\n")
    assert load_task(folder).hash not in {before, with_rooms}


def test_every_mistake_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    folder = write_task(
        tmp_path / "bad",
        labelled=[
            ROWS["labelled"][0],
            '{"text": "broken',
            {"text": "a", "calls": [{"name": "set_lmap", "arguments": {}}]},
            {"text": "b", "calls": [{"name": "set_lamp", "arguments": {"rom": "hall"}}]},
            {"text": "c", "calls": [{"name": "set_lamp", "arguments": {"room": "hall", "level": 101}}]},
            {"text": "d", "calls": [{"name": "set_lamp", "arguments": {"room": "hal"}}]},
            {"text": "e"},
            {"txet": "f", "calls": []},
            {"text": "g", "call": []},
            '{"text": "h \\ud83d", "calls": []}',
        ],
        valid=[],
    )
    (folder / "test.jsonl").unlink()
    told = problems(folder)
    expected = [
        ("labelled.jsonl:2", "broken JSON"),
        ("labelled.jsonl:3", "did you mean 'set_lamp'?"),
        ("labelled.jsonl:4", "did you mean 'room'?"),
        ("labelled.jsonl:5", "is greater than the maximum of 100"),
        ("labelled.jsonl:6", "did you mean 'hall'?"),
        ("labelled.jsonl:7", "has no calls"),
        ("labelled.jsonl:8", "needs a text or messages"),
        ("labelled.jsonl:9", "did you mean 'calls'?"),
        ("labelled.jsonl:10", "holds half a character, '\\ud83d'"),
        ("valid.jsonl", "is empty"),
        ("test.jsonl", "is not there"),
    ]
    assert len(told) == len(expected)
    for place, words in expected:
        assert any(place in line and words in line for line in told), (place, words, told)


def test_missing_tools_say_how_to_make_them(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "a")
    (folder / "tools.json").unlink()
    assert any("supertiny new --tools-from" in line for line in problems(folder))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "broken JSON"),
        ("[]", "must be a list of tools"),
        ('[{"type": "function"}]', "tool 1: needs"),
        ('[{"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "text"}}}}]', "no JSON Schema"),
        ('[{"name": "f"}, {"name": "f"}]', "tool 2: 'f' is there twice"),
    ],
)
def test_broken_tools_are_told(tmp_path: Path, content: str, words: str) -> None:
    folder = write_task(tmp_path / "a")
    (folder / "tools.json").write_text(content)
    assert any("tools.json" in line and words in line for line in problems(folder))


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("nmae: x", "did you mean 'name'?"),
        ("splits: {tset: x.jsonl}", "did you mean 'test'?"),
        ("leak_similarity: 2", "leak_similarity"),
        ("[", "cannot be read"),
    ],
)
def test_a_broken_card_is_told(tmp_path: Path, card: str, words: str) -> None:
    folder = write_task(tmp_path / "a")
    (folder / "task.yaml").write_text(card)
    assert any("task.yaml" in line and words in line for line in problems(folder))


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(UserError, match="there is no task folder"):
        load_task(Path("nowhere/at/all"))


@pytest.mark.parametrize(
    ("split", "text", "words"),
    [
        ("test", "Kitchen lamp, to 40!", "says the same as"),
        ("valid", "make it  bright in the hall", "says the same as"),
        ("test", "DIM the hall, please", "valid.jsonl:1"),
    ],
)
def test_leaking_rows_are_refused(tmp_path: Path, split: str, text: str, words: str) -> None:
    told = problems(write_task(tmp_path / "a", **{split: [{"text": text, "calls": []}]}))
    assert len(told) == 1
    assert told[0].startswith("leak: ")
    assert f"{split}.jsonl:1" in told[0]
    assert words in told[0]


def test_near_duplicates_are_found_at_the_threshold_and_not_below() -> None:
    long = (
        "please turn the lights in the living room down to forty percent before the guests arrive this evening at eight"
    )
    near = long.replace("eight", "eighty")
    score = jaccard(grams(normalised(long)), grams(normalised(near)))
    assert 0.9 < score < 1
    assert [leak.similarity for leak in find_leaks({"a": near}, {"b": long}, 0.9)] == [pytest.approx(score)]
    assert find_leaks({"a": near}, {"b": long}, score + 0.001) == []
    other = {"b": "turn on the bedroom light"}
    assert find_leaks({"a": "turn on the kitchen light"}, other, 0.9) == []


def test_leak_similarity_can_be_set(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "a", test=[{"text": "kitchen lamp to 45", "calls": []}])
    load_task(folder)
    (folder / "task.yaml").write_text("leak_similarity: 0.6")
    assert any("is nearly the same" in line for line in problems(folder))


def test_texts_without_letters_are_compared_as_they_are() -> None:
    assert normalised("?!") != normalised("...")
    assert find_leaks({"a": "灯を つけて。"}, {"b": "灯を つけて"})[0].similarity == 1


@pytest.mark.parametrize("level", [67, 67.0, "67"])
def test_numbers_may_come_as_text(task: Task, level: object) -> None:
    gold = [Call("set_lamp", {"room": "hall", "level": 67})]
    verdict = task.verify(Request.from_text("hall to 67"), [Call("set_lamp", {"room": "hall", "level": level})], gold)
    assert (verdict.outcome, verdict.similarity) == ("pass", 1.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (Call("set_lamps", {}), "did you mean 'set_lamp'?"),
        (Call("set_lamp", {"level": 3}), "'room' is a required property"),
        (Call("set_lamp", {"room": "hall", "level": "much"}), "is not of type 'integer'"),
        (Call("set_lamp", {"room": "hall", "level": 6.5}), "is not of type 'integer'"),
        (Call("set_lamp", {"room": "hall", "colour": "red"}), "no argument 'colour'"),
    ],
)
def test_calls_that_the_schema_forbids_fail_with_a_reason(task: Task, call: Call, words: str) -> None:
    verdict = task.verify(Request.from_text("x"), [call])
    assert verdict.outcome == "fail"
    assert words in verdict.reason
    assert verdict.similarity == 0.0


def test_no_call_abstains_and_is_compared_with_gold(task: Task) -> None:
    request = Request.from_text("hello")
    assert task.verify(request, []).outcome == "abstain"
    assert task.verify(request, [], []).similarity == 1.0
    assert task.verify(request, [], [Call("set_lamp", {"room": "hall"})]).similarity == 0.0


def test_the_hook_has_the_last_word_after_the_schema(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "a")
    hook = "def verify(text, calls):\n    return ('pass', '') if text == 'yes' else ('fail', f'{len(calls)} calls')\n"
    (folder / "hooks.py").write_text(hook)
    task = load_task(folder)
    good = [Call("set_lamp", {"room": "hall"})]
    assert task.verify(Request.from_text("yes"), good).outcome == "pass"
    assert task.verify(Request.from_text("yes"), []).outcome == "pass"
    assert task.verify(Request.from_text("no"), good).reason == "1 calls"
    assert task.verify(Request.from_text("yes"), [Call("nothing", {})]).outcome == "fail"


@pytest.mark.parametrize(
    ("code", "words"),
    [("x = 1", "no function verify"), ("def", "SyntaxError"), ("import nothing_of_this_name", "cannot be imported")],
)
def test_broken_hooks_are_told(tmp_path: Path, code: str, words: str) -> None:
    folder = write_task(tmp_path / "a")
    (folder / "hooks.py").write_text(code)
    assert any("hooks.py" in line and words in line for line in problems(folder))


def test_a_hook_that_answers_nonsense_is_told(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "a")
    (folder / "hooks.py").write_text("def verify(text, calls):\n    return True\n")
    with pytest.raises(UserError, match=r"outcome, reason"):
        load_task(folder).verify(Request.from_text("x"), [])


def test_tools_are_inferred_from_calls(tmp_path: Path) -> None:
    values = [
        ("hall", 1, "a b"),
        ("kitchen", 2.5, "c d"),
        ("hall", "3", "e f"),
        ("hall", 4, None),
        ("kitchen", 5, "g"),
        ("hall", 6, "h"),
    ]
    rows = [
        {"text": str(n), "calls": [{"name": "set", "arguments": {"room": r, "to": t} | ({"note": o} if o else {})}]}
        for n, (r, t, o) in enumerate(values)
    ]
    (tmp_path / "labelled.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tool,) = tools_from(tmp_path / "labelled.jsonl")
    assert tool.name == "set"
    assert tool.parameters["properties"] == {
        "note": {"type": "string"},
        "room": {"type": "string", "enum": ["hall", "kitchen"]},
        "to": {"type": "number"},
    }
    assert tool.parameters["required"] == ["room", "to"]


def test_inferred_schemas_of_nested_values() -> None:
    calls = [Call("f", {"a": [1, 2], "b": {"c": True}, "d": 1}), Call("f", {"a": [], "b": {"c": False}, "d": 2.0})]
    (tool,) = infer_tools({"labelled": calls})
    assert tool.parameters["properties"] == {
        "a": {"type": "array", "items": {"type": "integer"}},
        "b": {
            "type": "object",
            "properties": {"c": {"type": "boolean"}},
            "required": ["c"],
            "additionalProperties": False,
        },
        "d": {"type": "integer"},
    }


def test_inferred_tools_refuse_no_splits_gold_and_hold_no_value_of_test(tmp_path: Path) -> None:
    def write(split: str, *arguments: dict[str, object]) -> None:
        rows = [{"text": f"{split} {n}", "calls": [{"name": "set", "arguments": a}]} for n, a in enumerate(arguments)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    write("labelled", *[{"room": "hall", "mode": "on", "to": 1}] * 6)
    (tmp_path / "unlabelled.jsonl").write_text(json.dumps({"text": "no calls"}))
    write("valid", *[{"room": "kitchen", "mode": "on", "to": 2.5, "note": "x"}] * 3)
    write("test", {"room": "secret room", "mode": "on", "late": 3})
    (tool,) = tools_from(tmp_path / "labelled.jsonl")
    assert tool.parameters["properties"] == {
        "late": {"type": "integer"},
        "mode": {"type": "string", "enum": ["on"]},
        "note": {"type": "string", "enum": ["x"]},
        "room": {"type": "string"},
        "to": {"type": "number"},
    }
    assert tool.parameters["required"] == ["mode", "room"]
    write("test", {"room": "hall", "mode": "on"})
    (tool,) = tools_from(tmp_path / "labelled.jsonl")
    assert tool.parameters["properties"]["room"] == {"type": "string", "enum": ["hall", "kitchen"]}
    write("test", {"room": "cellar", "mode": "on"})
    (tmp_path / "unlabelled.jsonl").write_text(json.dumps({"text": "more light"}))
    (tool,) = tools_from(tmp_path / "labelled.jsonl")
    (tmp_path / "tools.json").write_text(json.dumps([tool.to_openai()]))
    assert load_task(tmp_path).test[0].answer is not None
