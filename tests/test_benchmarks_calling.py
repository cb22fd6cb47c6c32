"""The function-calling benchmark: prompts, what is read from answers, thresholds, and the adapter to the checker."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks._bfcl import (
    best_threshold,
    bfcl,
    calibration_pairs,
    chance_of_yes,
    check,
    checker_python,
    led_calls,
    led_prompts,
    tidied,
)
from benchmarks._bfcl_shots import SHOTS, fitting_messages, shot_messages
from benchmarks._data import CATEGORIES, Case, bfcl_cases
from benchmarks._measuring import Room
from supertiny.core.errors import UserError
from supertiny.core.ledger import Ledger
from supertiny.core.progress import Progress
from supertiny.core.records import Call, Completion, Grammar, Prompt, Sampling
from supertiny.core.verifying import verified
from tests.fake_engine import FakeEngine

AREA = {
    "name": "shapes.area",
    "description": "Area of a rectangle.",
    "parameters": {
        "type": "dict",
        "properties": {"width": {"type": "float", "description": "m"}, "count": {"type": "integer"}},
        "required": ["width"],
    },
}
OTHER = {**AREA, "name": "shapes.name"}
# Stands in for the leaderboard's package, with its module paths: exact equality, and it looks the model up.
PACKAGE = {
    "constants/enums.py": "class Language:\n    PYTHON = 'python'\n",
    "constants/model_config.py": "import no_such_client\n",
    "eval_checker/ast_eval/ast_checker.py": (
        "from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING\n"
        "def ast_checker(functions, calls, answers, language, category, model):\n"
        "    assert not MODEL_CONFIG_MAPPING[model].underscore_to_dot and language == 'python'\n"
        "    return {'valid': calls == answers, 'error': [category]}\n"
    ),
}


def row(name: str, count: int, answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"{name}_{count}",
        "text": f"area of {count}",
        "system": [],
        "tools": [AREA],
        "possible_answers": answers,
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "bfcl"
    folder.mkdir(parents=True)
    for category in CATEGORIES:
        name = "simple_python" if category == "simple" else category
        wanted = [] if category == "irrelevance" else [{"shapes.area": {"width": 2.5, "count": 3}}]
        lines = [json.dumps(row(name, count, wanted)) for count in range(7)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "data"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, text in PACKAGE.items():
        path = tmp_path / "site" / "bfcl_eval" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def a_model(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    if sampling.max_tokens == 1:
        return "yes"
    return '[{"name": "shapes.area", "arguments": {"width": 2.5, "count": 3.0}}]'


def cases(data: Path, category: str = "simple") -> list[Case]:
    return bfcl_cases(data / "bfcl", category, 0, seed=1)


def test_rows_are_drawn_by_seed_and_keep_the_checkers_own_descriptions(data: Path) -> None:
    some = bfcl_cases(data / "bfcl", "parallel", 3, seed=1)
    assert len(some) == 3
    assert [case.request.id for case in some] == [c.request.id for c in bfcl_cases(data / "bfcl", "parallel", 3, 1)]
    assert len(cases(data, "parallel")) == 7
    assert some[0].functions[0]["parameters"]["type"] == "dict"
    assert some[0].request.tools[0].parameters["properties"]["width"]["type"] == "number"


def test_solved_examples_are_lawful_and_shared(data: Path) -> None:
    for tools, text, calls in SHOTS:
        made = [Call(name, arguments) for name, arguments in calls]
        request = cases(data)[0].request
        assert verified(request, made, {tool.name: tool for tool in tools}).outcome in ("pass", "abstain"), text
    prompts = led_prompts(cases(data))
    shared = len(shot_messages())
    assert {prompt.shared for prompt in prompts} == {shared}
    assert {json.dumps(prompt.messages[:shared]) for prompt in prompts} == {json.dumps(shot_messages())}
    assert '"shapes.area"' in str(prompts[0].messages[-1]["content"])
    assert "Request: area of 0" in str(prompts[0].messages[-1]["content"])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('[{"name": "a", "arguments": {}}]', ["a"]),
        ('```json\n[{"name": "a", "arguments": {}}]\n```', ["a"]),
        ('{"name": "a", "arguments": {}}\n{"name": "b", "arguments": {}}', ["a", "b"]),
        ('<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>', ["a"]),
        ("[]", []),
    ],
)
def test_calls_are_found_however_they_are_wrapped(text: str, names: list[str]) -> None:
    assert [call["name"] for call in json.loads(tidied(text))] == names


def test_prose_stays_prose() -> None:
    assert tidied("No function fits.") == "No function fits."


def test_whole_numbers_and_unfitting_functions(data: Path, ledger: Ledger) -> None:
    room = Room(FakeEngine(a_model), ledger, data, progress=Progress(quiet=True))
    said, kept, seconds = led_calls(room, "simple", cases(data), threshold=0.5)
    assert said == kept
    assert said[0] == (Call("shapes.area", {"width": 2.5, "count": 3}),)
    assert isinstance(said[0][0].arguments["count"], int)
    assert seconds > 0
    doubting = FakeEngine(lambda p, s, g: "no" if s.max_tokens == 1 else a_model(p, s, g), name="doubting")
    said, kept, _ = led_calls(Room(doubting, ledger, data), "simple", cases(data), threshold=0.5)
    assert said[0]
    assert kept == [()] * 7


def test_the_chance_of_yes_is_that_of_the_token() -> None:
    assert chance_of_yes(Completion("yes", logprob=math.log(0.8))) == pytest.approx(0.8)
    assert chance_of_yes(Completion(" No", logprob=math.log(0.8))) == pytest.approx(0.2)
    assert chance_of_yes(Completion("yes")) == 1.0


def test_a_wanted_call_that_is_dropped_weighs_twice() -> None:
    assert best_threshold([(0.9, True), (0.8, True), (0.3, False), (0.1, False)]) == 0.8
    assert best_threshold([(0.5, True), (0.6, False), (0.9, True)]) <= 0.5
    assert best_threshold([(0.9, True)]) == 0.0


def test_pairs_are_of_functions_that_were_called_and_that_were_not() -> None:
    rows = [
        {"text": str(n), "calls": [{"name": AREA["name"], "arguments": {}}], "tools": [AREA, OTHER]} for n in range(9)
    ]
    pairs = calibration_pairs(rows, 4, seed=1)
    assert sorted(fits for *_, fits in pairs) == [False] * 4 + [True] * 4
    assert all((tool.name == AREA["name"]) == fits for tool, _, fits in pairs)
    assert {name for tool, *_ in pairs for name in tool.parameters["properties"]} == {"width", "count"}
    assert [fitting_messages()[0]["role"], fitting_messages()[-1]["content"]] == ["system", "no"]


@pytest.mark.usefixtures("package")
def test_the_leaderboards_checker_has_the_word(data: Path) -> None:
    python = checker_python(Path(sys.executable))
    right, wrong = (Call("shapes.area", {"width": 2.5, "count": 3}),), (Call("shapes.area", {"width": 1}),)
    assert check(python, "simple", cases(data)[:3], [right, wrong, ()]) == [True, False, False]
    assert check(python, "irrelevance", cases(data, "irrelevance")[:2], [right, ()]) == [False, True]


def test_without_the_package_nothing_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="bfcl"):
        checker_python(None)
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    bare.chmod(0o755)
    with pytest.raises(UserError, match="bfcl_eval"):
        checker_python(bare)


@pytest.mark.usefixtures("package")
def test_figures_have_their_names(data: Path, ledger: Ledger) -> None:
    room = Room(FakeEngine(a_model), ledger, data, rows=2, progress=Progress(quiet=True))
    figures, table = bfcl(room, Path(sys.executable))
    values = {name: value for name, _, value in figures}
    for category in CATEGORIES:
        for name in (f"bfcl_{category}_plain", f"bfcl_{category}_pipeline"):
            assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]
            assert values[f"{name}_n"] == 2
    assert values["bfcl_simple_pipeline"] == 1.0
    assert values["bfcl_irrelevance_pipeline"] == 0.0
    assert values["bfcl_fitting_threshold"] == 0.0  # xlam1k is not there
    assert len(table) == 3 * len(CATEGORIES)
