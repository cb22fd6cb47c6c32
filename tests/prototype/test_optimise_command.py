"""`supertiny optimise` as it is typed, and how a choice comes into a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from supertiny import cli
from supertiny.core.errors import UserError
from supertiny.core.recipe import read_recipe
from supertiny.core.records import Grammar, Prompt, Sampling
from supertiny.prototype import optimise
from supertiny.prototype.search.recipe_file import _edited, as_yaml, unsaid, write_into
from supertiny.prototype.settings import Settings
from tests.fake_engine import FakeEngine
from tests.small_recipe import SMALLEST
from tests.small_task import PHRASES, rows, write_task

GOLD = {row["text"]: row["calls"][0] for split in PHRASES for row in rows(split)}
BLOCK = {"steps": [{"method": "retrieve", "examples": 6}, "fill"]}
RECIPE = """# What this recipe is for.
task: {task}
seed: 7   # a lucky one

prototype:
  # The pipeline.
  steps:   # in order
    - fill
    # it is checked
    - check

  # What is kept.
  curators: [verified]
  budget: {{dollars: 1}}

optimise: {{steps: [[fill]], examples: [0, 4], least_rows: 4, fresh_share: 0.5}}
# The end.
"""


def author(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """Right where it is shown examples."""
    call = GOLD[prompt.messages[-1]["content"]]
    if not any(message["role"] == "assistant" for message in prompt.messages):
        return "~"
    return f"{call['name']} " + "; ".join(f"{name} {value}" for name, value in sorted(call["arguments"].items()))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(optimise, "open_engine", lambda settings: FakeEngine(author))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(task=write_task(tmp_path / "task")), encoding="utf-8")
    return path


def typed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, list[str]]:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err.splitlines()


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = typed(capsys, "optimise", "--help")
    assert status == 0
    assert "Example: supertiny optimise" in " ".join(out.split())


def test_it_prints_what_it_found_and_what_to_paste(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = recipe.read_text(encoding="utf-8")
    status, out, _ = typed(capsys, "optimise", recipe, "--folder", tmp_path / "run")
    assert status == 0
    assert "* retrieve(examples=4) + fill" in out
    assert "fill + check (the recipe's)" in out
    assert "on 9 rows that had no part in the choice: 100.0 % exact" in out
    assert "which flatters it" in out
    assert "  steps: [{method: retrieve, examples: 4}, fill]" in out
    assert recipe.read_text(encoding="utf-8") == before
    found = json.loads((tmp_path / "run" / "optimise.json").read_text(encoding="utf-8"))
    chosen = found["chosen"]["prototype"]
    assert chosen["steps"] == [{"method": "retrieve", "examples": 4}, "fill"]
    assert (chosen["format"], chosen["wording"]) == ("compact", ""), "the file says all that the pipeline is"


def test_it_writes_the_choice_and_nothing_else(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = recipe.read_text(encoding="utf-8")
    status, out, _ = typed(capsys, "optimise", recipe, "--folder", tmp_path / "run", "--write")
    after = recipe.read_text(encoding="utf-8")
    assert status == 0
    assert "+  steps: [{method: retrieve, examples: 4}, fill]" in out
    assert read_recipe(recipe).sections["prototype"]["steps"] == [{"method": "retrieve", "examples": 4}, "fill"]
    gone = ["  steps:   # in order", "    - fill", "    # it is checked", "    - check"]
    come = "  steps: [{method: retrieve, examples: 4}, fill]  # in order"
    expected = [line for line in before.splitlines() if line not in gone]
    expected.insert(before.splitlines().index(gone[0]), come)
    assert after.splitlines() == expected
    assert (tmp_path / "recipe.yaml.bak").read_text(encoding="utf-8") == before
    status, out, _ = typed(capsys, "optimise", recipe, "optimise.keep=4", "--folder", tmp_path / "run", "--write")
    assert "the recipe's own pipeline is the best of these" in out
    assert recipe.read_text(encoding="utf-8") == after


def test_overrides_replace_what_the_recipe_says(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = typed(capsys, "optimise", recipe, "optimise.rows=8", "--folder", tmp_path / "run")
    found = json.loads((tmp_path / "run" / "optimise.json").read_text(encoding="utf-8"))
    assert (status, found["rows"]) == (0, {"valid": 18, "halving": 8, "fresh": 0})
    assert "it was not measured on fresh rows" in out
    arguments = ("optimise", recipe, "optimise.budget.minutes=0", "--folder", tmp_path / "second", "--write")
    status, out, err = typed(capsys, *arguments)
    assert status == 2
    assert "stopped early: the budget of 0 minutes is reached" in out
    assert err[-1].startswith("error: nothing is written: the budget was reached before every pipeline")


def test_mistakes_are_told_before_anything_is_spent(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = typed(capsys, "optimise", recipe, "optimise.steps=[[fil]]", "--folder", tmp_path / "run")
    assert (status, out) == (2, "")
    assert err == ["error: optimise.steps.0.0: steps has no method 'fil' (did you mean 'fill'?)"]
    assert not (tmp_path / "run").exists()


def test_an_override_that_is_chosen_is_written_too(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "prototype.steps=[{method: retrieve, examples: 4}, fill]"
    for known in (False, True):
        status, out, _ = typed(capsys, "optimise", recipe, own, "--folder", tmp_path / "run", "--write")
        assert status == 0
        assert ("says so already" in out) == known
        assert read_recipe(recipe).sections["prototype"]["steps"] == [{"method": "retrieve", "examples": 4}, "fill"]


def test_an_overridden_engine_and_wording_are_written_with_the_steps(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured is what the recipe says afterwards; what it says by itself is not said again."""
    engine = {"method": "openvino", "model": SMALLEST}
    overrides = (f"prototype.engine={{method: openvino, model: {SMALLEST}}}", "prototype.wording=Be brief.")
    for times in range(2):
        status, out, _ = typed(capsys, "optimise", recipe, *overrides, "--folder", tmp_path / "run", "--write")
        assert status == 0
        written = read_recipe(recipe).sections["prototype"]
        assert (written["engine"], written["wording"], written.get("format")) == (engine, "Be brief.", None)
        assert ("wording" in out) == (not times)


def test_what_a_recipe_says_by_itself_is_not_said_again(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    usual = {"engine": vars(Settings())["engine"], "format": "compact", "wording": ""}
    block = {**BLOCK, **usual}
    for text, named in (
        ("task: a\n", {"engine", "format", "wording"}),
        ("prototype:\n", {"engine", "format", "wording"}),
        ("prototype: {format: chat_json}\n", {"engine", "wording"}),
        ("prototype: {format: {method: compact}, engine: openvino, wording: x}\n", {"format"}),
    ):
        path.write_text(text, encoding="utf-8")
        assert set(block) - set(unsaid(path, block)) == named


EDITABLE = {
    "block": "task: a\nprototype:\n  engine: openvino # e\n  steps: # s\n    - fill\n    - vote\n\n  # c\n  chunk: 3\n",
    "flow": "task: a\nprototype: {steps: [fill], chunk: 3}\n",
    "empty flow": "task: a\nprototype: {}\n",
    "empty": "task: a\nprototype:\ntransfer: {}\n",
    "none": "task: a",
    "no indent": "task: a\nprototype:\n  steps:\n  - fill\n# c\nseed: 3\n",
    "last line": "task: a\nprototype:\n    chunk: 8\n    steps:\n    - method: retrieve\n      examples: 3 # three",
    "no value": "task: a\nprototype:\n  steps:\n  chunk: 3\n",
    "no step": "task: a\nprototype:\n  steps: []\n",
    "json": '{"task": "a", "prototype": {"steps": ["fill"]}}',
    "literal": "task: a\nprototype:\n  wording: |\n    many\n    lines\n  chunk: 3\n",
}
CHOICE = {**BLOCK, "engine": {"method": "openvino", "model": "x"}, "wording": 'Say: it, # now\nand "then" é'}


@pytest.mark.parametrize("name", EDITABLE)
def test_an_edited_recipe_says_what_was_chosen_and_all_else_as_before(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(EDITABLE[name], encoding="utf-8")
    wanted = yaml.safe_load(EDITABLE[name])
    wanted["prototype"] = {**(wanted.get("prototype") or {}), **CHOICE}
    changes = write_into(path, CHOICE)
    text = path.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == wanted
    assert all(f"# {letter}" in text for letter in "esc" if f"# {letter}" in EDITABLE[name])
    assert "+" in changes
    assert write_into(path, CHOICE) == "", "written once, it is there"
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "text",
    [
        "x: &s [fill]\nprototype:\n  steps: *s\n",
        "prototype:\n  ? steps\n  : [fill]\n",
        "prototype: &p {steps: [fill]}\ntransfer: *p\n",
        "- a list\n",
    ],
)
def test_what_cannot_be_edited_safely_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="paste it instead"):
        write_into(path, CHOICE)
    assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_printed_can_be_pasted() -> None:
    assert yaml.safe_load(as_yaml(CHOICE)) == {"prototype": CHOICE}
    assert yaml.safe_load(str(_edited("task: a\n", CHOICE))) == {"task": "a", "prototype": CHOICE}


def test_the_table_shows_names_with_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from supertiny.prototype.search.table import print_outcome

    line: dict[str, Any] = {
        "exact": 0.5,
        "exact_low": 0.4,
        "exact_high": 0.6,
        "n": 10,
        "seconds": 2.1,
        "dollars": 0.001,
        "once": {"calls": 200, "seconds": 61.5, "dollars": 0.25},
    }
    entry = {**line, "key": "k", "name": "fill [bold]", "front": True, "against_present": None}
    outcome: dict[str, Any] = {
        "pipelines": [entry],
        "present": "k",
        "chosen": None,
        "why_none": "no reason",
        "untried": 0,
        "worth": [],
        "fresh": None,
        "stopped": "",
        "requests": 10,
        "grid_requests": 10,
        "spent": {"calls": 10, "minutes": 1.0, "dollars": 0.0},
        "spent_in_all": {"calls": 10},
    }
    print_outcome(outcome, Console(width=160))
    out = capsys.readouterr().out
    assert "* fill [bold] (the recipe's)" in out
    assert "40.0–60.0" in out
    assert "61.5 s, $0.25" in out
    assert "nothing is chosen: no reason" in out
