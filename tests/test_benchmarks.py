"""The quality benchmark's pure parts: draws that do not leak, pipelines that are recipes, figures with their names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks._banking import banking
from benchmarks._data import VARIABLE, balanced, banking_split, folder_of, json_schema, snips_task, xlam_rows
from benchmarks._measuring import Room, line, measured, shares
from benchmarks._snips import SECOND_CALL_SHARE, WITHIN, chosen, snips
from benchmarks.prototype_quality import options
from supertiny.core.errors import UserError
from supertiny.core.files import read_rows
from supertiny.core.leaks import find_leaks
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.records import Grammar, Prompt, Sampling
from tests.fake_engine import FakeEngine
from tests.slot_task import made_rows, slot_model
from tests.tiny_student import write_student

WORDS = [
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliet",
    "kilo",
    "lima",
    "mike",
    "november",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = made_rows()
    valid, train = rows[::5], [row for place, row in enumerate(rows) if place % 5]
    leak = {**valid[0], "text": valid[0]["text"].upper() + "!"}
    write(tmp_path / "snips" / "train.jsonl", [*train, leak, *train[:3], leak, *train[:20]])
    write(tmp_path / "snips" / "valid.jsonl", valid)
    questions = [
        {"text": f"{verb} my {thing} {word}", "label": f"{verb}_{thing}"}
        for verb in ("lost", "order", "freeze")
        for thing in ("card", "pin")
        for word in WORDS
    ]
    write(tmp_path / "banking77" / "train.jsonl", questions)
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def room(data: Path, tmp_path: Path) -> Iterator[Callable[[FakeEngine], Room]]:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    reader = str(write_student(tmp_path / "reader"))
    yield lambda engine: Room(engine, ledger, data, quick=True, progress=Progress(quiet=True), reader=reader)
    ledger.close()


def a_model(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """Knows every command of the made set but one argument, and says labels as they are."""
    asked = str(prompt.messages[-1]["content"])
    if " my " in asked:
        verb, _, thing, _ = asked.split()
        label = f"{verb}_{thing}"
        return json.dumps([{"name": label, "arguments": {}}]) if "JSON" in str(prompt.messages[0]["content"]) else label
    return slot_model(prompt, sampling, grammar)


class TestData:
    def test_drawn_rows_are_balanced_and_say_nothing_that_valid_asks(self, data: Path) -> None:
        task = snips_task(data / "snips", 30, seed=1)
        names = [row.answer.calls[0].tool for row in task.labelled if row.answer]
        assert len(names) == 30
        assert {names.count(name) for name in set(names)} <= {9, 10, 11}
        assert task.unlabelled == ()
        plain = {row.request.text.casefold().strip("!") for row in task.labelled}
        assert len(plain) == 30
        assert not plain & {row.request.text.casefold() for row in task.valid}

    def test_the_pool_stands_beside_the_labelled_rows_with_its_gold_apart(self, data: Path) -> None:
        task = snips_task(data / "snips", 20, seed=1, pool=15)
        assert len(task.unlabelled) == 15
        assert all(row.answer is None for row in task.unlabelled)
        assert set(task.pool_gold) == {row.request.id for row in task.unlabelled}
        assert not {r.request.text for r in task.labelled} & {r.request.text for r in task.unlabelled}
        # Rows come as they come, twice where they stand there twice; what valid asks is left out each time.
        every = [row.request.text for row in snips_task(data / "snips", 3, seed=1, pool=99).unlabelled]
        assert len(set(every)) < len(every)
        asked = {row.request.text.casefold() for row in task.valid}
        assert not {text.casefold().strip("!") for text in every} & asked

    def test_signatures_name_all_slots(self, data: Path) -> None:
        rate = snips_task(data / "snips", 20, seed=1).tool_map["RateBook"]
        assert sorted(rate.parameters["properties"]) == ["object_name", "rating_unit", "rating_value"]

    def test_questions_that_are_shown_are_not_asked(self, data: Path) -> None:
        shown, held = banking_split(data / "banking77", each=10, held_out=20, seed=3)
        assert [sum(row.label == label for row in shown) for label in {row.label for row in shown}] == [10] * 6
        assert len(held) == 20
        assert not {row.text for row in shown} & {row.text for row in held}

    def test_questions_that_say_nearly_the_same_as_shown_ones_are_not_asked(self, data: Path) -> None:
        rows = read_rows(data / "banking77" / "train.jsonl")
        write(data / "banking77" / "train.jsonl", [*rows, *({**row, "text": f"{row['text']}?!"} for row in rows)])
        shown, held = banking_split(data / "banking77", each=10, held_out=200, seed=3)
        texts = [{str(place): row.text for place, row in enumerate(part)} for part in (held, shown)]
        assert not find_leaks(*texts)
        assert 0 < len(held) < 2 * len(rows) - len(shown)

    def test_same_seed_same_draw(self) -> None:
        rows = [{"label": str(place % 3)} for place in range(30)]
        assert balanced(rows, "label", 9, seed=5) == balanced(rows, "label", 9, seed=5)
        assert balanced(rows, "label", 9, seed=5) != balanced(rows, "label", 9, seed=6)

    def test_a_set_that_is_not_there_is_told_with_its_source(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(VARIABLE, str(tmp_path))
        with pytest.raises(UserError, match="banking_data"):
            folder_of("banking77", None)
        (tmp_path / "banking77").mkdir()
        assert folder_of("banking77", None) == tmp_path / "banking77"

    def test_types_of_the_leaderboard_become_those_of_json_schema(self) -> None:
        theirs = {
            "type": "dict",
            "properties": {"a": {"type": "array", "items": {"type": "float"}}, "b": {"type": "any", "optional": True}},
            "required": ["a"],
        }
        assert json_schema(theirs) == {
            "type": "object",
            "properties": {"a": {"type": "array", "items": {"type": "number"}}, "b": {"type": "string"}},
            "required": ["a"],
        }

    def test_rows_with_functions_of_their_own_are_read(self, tmp_path: Path) -> None:
        assert xlam_rows(tmp_path) == []
        arguments = {"x": {"type": "str", "description": "X."}, "n": {"type": "List[int], optional"}}
        bare = {"name": "a", "description": "A.", "parameters": arguments}
        full = {
            "name": "b",
            "description": "B.",
            "parameters": {"type": "dict", "properties": {"y": {"type": "float"}}},
        }
        row = {"text": "do a", "tools": [bare, full], "calls": [{"name": "a", "arguments": {"x": "1"}}]}
        write(tmp_path / "xlam1k" / "train.jsonl", [row])
        (found,) = xlam_rows(tmp_path)
        assert [list(tool.parameters["properties"]) for tool in found.request.tools] == [["x", "n"], ["y"]]
        first = found.request.tools[0].parameters
        assert [first["properties"][name]["type"] for name in "xn"] == ["string", "array"]
        assert first["required"] == ["x"]
        assert found.answer is not None
        assert found.answer.calls[0].tool == "a"


class TestSnips:
    def test_every_pipeline_is_a_recipe_of_the_librarys_steps(self) -> None:
        for within, _ in WITHIN.values():
            assert build("steps", {"method": "stack", "steps": within}).calls_per_request <= 2.1

    @pytest.mark.slow
    def test_figures_have_their_names(self, room: Callable[[FakeEngine], Room]) -> None:
        figures, table = snips(room(FakeEngine(a_model)))
        values = {name: value for name, _, value in figures}
        for name in ("snips_plain_exact", "snips_nearest8_exact", "snips_pipeline_exact"):
            assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]
            assert values[f"{name}_n"] == 15
        assert {"snips_nearest8_seconds", "snips_pipeline_seconds", "snips_pipeline_slot_f1"} <= set(values)
        assert values["snips_nearest8_exact"] == pytest.approx(2 / 3)
        assert values["snips_pipeline_exact"] > 0.8
        steps = [entry["step"] for entry in table]
        assert [step for step in steps if step.startswith("without")] == [
            "without classify", "without the model",
        ]  # fmt: skip
        assert all({"difference", "low", "high"} <= set(entry) for entry in table[1:])

    def test_the_choice_looks_at_labelled_rows_alone(
        self, room: Callable[[FakeEngine], Room], data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "benchmarks._snips.WITHIN", {"marked": (["retrieve", "mark"], True), "both": (["fill", "mark"], False)}
        )
        task = snips_task(data / "snips", 30, seed=1)
        engine = FakeEngine(a_model)
        working = replace(room(engine), quick=False)
        name, table = chosen(working, task, "auto")
        assert [entry["n"] for entry in table] == [30, 30]
        one, two = (entry["exact"] for entry in table)
        assert name == ("both" if two - one > SECOND_CALL_SHARE else "marked")
        asked = {str(prompt.messages[-1]["content"]) for prompt, *_ in engine.asked}
        assert not asked & {row.request.text for row in task.valid}
        assert chosen(working, task, "both") == ("both", [])

    def test_a_second_run_asks_nothing_and_keeps_its_seconds(
        self, room: Callable[[FakeEngine], Room], data: Path
    ) -> None:
        task = snips_task(data / "snips", 20, seed=1)
        first, second = FakeEngine(a_model), FakeEngine(a_model)
        steps = [{"method": "stack", "steps": ["mark"]}]
        before, after = (measured(room(engine), task, "x", task.valid, steps) for engine in (first, second))
        assert len(first.asked) == len(task.labelled) + len(task.valid)
        assert not second.asked
        assert [answer.cost for answer in before.answers] == [answer.cost for answer in after.answers]
        assert before.once_seconds == after.once_seconds


class TestBanking:
    def test_figures_have_their_names(self, room: Callable[[FakeEngine], Room]) -> None:
        figures, table = banking(room(FakeEngine(a_model)))
        values = {name: value for name, _, value in figures}
        for name in ("banking77_tfidf_accuracy", "banking77_plain_accuracy", "banking77_pipeline_accuracy"):
            assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]
            assert values[f"{name}_n"] == 20
        assert values["banking77_plain_accuracy"] == values["banking77_pipeline_accuracy"] == 1.0
        assert [entry["n"] for entry in table] == [20] * 7
        assert [entry["step"] for entry in table[:2]] == [
            "choice, on labelled rows: pipeline", "choice, on labelled rows: pipeline, with a reader",
        ]  # fmt: skip


def test_a_share_comes_with_its_interval() -> None:
    rows = {name: value for name, _, value in shares("x", "", [True, True, False, True])}
    assert rows["x"] == 0.75
    assert rows["x_n"] == 4
    assert 0.3 < rows["x_low"] < 0.75 < rows["x_high"] < 0.96


def test_a_line_says_what_it_is_compared_with() -> None:
    assert line("a", [True, False]) == {"step": "a", "exact": 0.5, "n": 2}
    entry = line("b", [True, True], ("a", [True, False]), seconds=2.0)
    assert (entry["against"], entry["difference"], entry["seconds"]) == ("a", 0.5, 2.0)


def test_the_command_line_takes_parts_and_rows() -> None:
    given = options().parse_args(["--part", "snips", "--part", "bfcl", "--rows", "0"])
    assert given.part == ["snips", "bfcl"]
    assert given.rows == 0
    assert given.folder == Path("runs/benchmarks/prototype_quality")
    assert given.pipeline == "auto"
