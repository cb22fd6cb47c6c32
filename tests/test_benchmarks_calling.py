"""The function-calling benchmark: rows, what the checker is told of answers, and the adapter to it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks._bfcl import bfcl, check, checker_python, stated
from benchmarks._data import CATEGORIES, Case, bfcl_cases
from benchmarks._measuring import Room
from supertiny.core.errors import UserError
from supertiny.core.ledger import Ledger
from supertiny.core.progress import Progress
from supertiny.core.records import Answer, Call, Grammar, Prompt, Sampling
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
        return "yes" if str(prompt.messages[-1]["content"]).startswith("Request: area of") else "no"
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


def test_whole_numbers_are_told_as_such_and_unknown_functions_not_at_all(data: Path) -> None:
    case = cases(data)[0]
    area = Call("shapes.area", {"width": 2.0, "count": 3.0})
    (found,) = stated(Answer((area, Call("shapes.volume"))), case)
    assert found == Call("shapes.area", {"width": 2.0, "count": 3})
    assert isinstance(found.arguments["count"], int)
    assert isinstance(found.arguments["width"], float)


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
    known = [
        {"text": f"area of {n}", "tools": [AREA], "calls": [{"name": AREA["name"], "arguments": {}}]} for n in range(9)
    ]
    unknown = [{"text": f"name of {n}", "tools": [AREA], "calls": []} for n in range(9)]
    (data / "xlam1k").mkdir()
    (data / "xlam1k" / "train.jsonl").write_text("\n".join(map(json.dumps, [*known, *unknown])), encoding="utf-8")
    (data / "bfcl" / "irrelevance.jsonl").write_text(
        json.dumps({**row("irrelevance", 0, []), "text": "tell me a joke"}), encoding="utf-8"
    )
    room = Room(FakeEngine(a_model), ledger, data, rows=2, progress=Progress(quiet=True))
    figures, table = bfcl(room, Path(sys.executable))
    values = {name: value for name, _, value in figures}
    for category in CATEGORIES:
        for name in (f"bfcl_{category}_plain", f"bfcl_{category}_pipeline"):
            assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]
            assert values[f"{name}_n"] == (1 if category == "irrelevance" else 2)
    assert values["bfcl_simple_pipeline"] == 1.0
    assert values["bfcl_irrelevance_plain"] == 0.0
    assert values["bfcl_irrelevance_pipeline"] == 1.0
    assert len(table) == 3 * len(CATEGORIES)
    assert values["bfcl_preparation_seconds"] > 0, "labelled rows are asked of, once"


@pytest.mark.usefixtures("package")
def test_without_rows_to_learn_from_every_call_stands(data: Path, ledger: Ledger) -> None:
    engine = FakeEngine(a_model)
    figures, _ = bfcl(Room(engine, ledger, data, rows=1, progress=Progress(quiet=True)), Path(sys.executable))
    values = {name: value for name, _, value in figures}
    assert (values["bfcl_irrelevance_pipeline"], values["bfcl_preparation_seconds"]) == (0.0, 0.0)
    assert all(sampling.max_tokens > 1 for _, sampling, _ in engine.asked)
