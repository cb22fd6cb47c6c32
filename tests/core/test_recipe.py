"""A recipe: all mistakes in one reading, overrides, and what stands in it survives."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from supertiny import pipeline
from supertiny.core.errors import UserError, UserErrors
from supertiny.core.recipe import Recipe, read_recipe
from tests.small_task import write_task

WHOLE = """
task: task
seed: 7
prototype:
  steps: [retrieve, fill, {method: vote, samples: 3}]
  engine: openvino
transfer:
  format: compact
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_task(tmp_path / "task")
    (tmp_path / "recipe.yaml").write_text(WHOLE, encoding="utf-8")
    return tmp_path / "recipe.yaml"


def written(place: Path, text: str) -> Path:
    place.write_text(text, encoding="utf-8")
    return place


def mistakes(place: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserErrors) as told:
        read_recipe(place, overrides)
    return [str(error) for error in told.value.errors]


def test_a_whole_recipe(place: Path) -> None:
    recipe = read_recipe(place)
    assert (recipe.name, recipe.seed) == (place.parent.name, 7)
    assert recipe.task == place.parent / "task"
    assert recipe.folder == Path("runs") / recipe.name
    assert recipe.sections["prototype"]["steps"][2] == {"method": "vote", "samples": 3}
    assert recipe.sections["compress"] == {}
    assert read_recipe(place.rename(place.with_name("lights.yaml"))).name == "lights"


def test_several_mistakes_are_told_at_once_with_the_nearest_word(place: Path) -> None:
    written(place, "tsak: x\nprototyp: {}\nseed: many\nserve: [1]\nname: 3\n")
    told = mistakes(place, "nothing", "serve.x=1")
    assert "override 'nothing' is not of the form a.b=value" in told[0]
    assert "override 'serve.x=1': x is not one of the places 0 to 0" in told[1]
    assert f"{place}: there is no section 'tsak' (did you mean 'task'?)" in told
    assert f"{place}: there is no section 'prototyp' (did you mean 'prototype'?)" in told
    assert any("seed must be int" in line for line in told)
    assert any("name must be str; found 3" in line for line in told)
    assert any("serve must be a mapping of settings; found [1]" in line for line in told)
    assert any("needs `task`" in line for line in told)
    assert len(told) == 8


def test_mistakes_of_all_stages_and_of_the_task_are_told_at_once(place: Path) -> None:
    (place.parent / "task" / "valid.jsonl").write_text('{"text": "x"\n', encoding="utf-8")
    written(
        place,
        "task: task\nprototype: {steps: [fil], budget: {dollar: 3}}\n"
        "transfer: {formt: compact, evaluations: 0, learners: [{method: imitate, pases: 2}]}\n",
    )
    with pytest.raises(UserErrors) as told:
        pipeline.load_recipe(place)
    lines = "\n".join(str(error) for error in told.value.errors)
    assert "prototype.steps.0: steps has no method 'fil' (did you mean 'fill'?)" in lines
    assert "transfer: there is no setting 'formt' (did you mean 'format'?)" in lines
    assert "transfer.evaluations: " in lines
    assert "valid.jsonl:1: broken JSON" in lines


def test_a_missing_task_is_told_with_the_places_that_were_looked_at(place: Path) -> None:
    told = mistakes(written(place, "task: elsewhere\nsed: 3\n"))
    assert len(told) == 2, "the other mistake is told in the same reading"
    assert any("task folder 'elsewhere' is not there" in line and str(place.parent) in line for line in told)
    assert any("did you mean 'seed'?" in line for line in told)
    assert "needs `task`" in mistakes(written(place, "seed: 3\n"))[0]


def test_a_task_is_looked_for_in_the_working_folder_first(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "task").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert read_recipe(place).task == Path("task")
    monkeypatch.chdir(tmp_path)
    assert read_recipe(place, [f"task={tmp_path / 'task'}"]).task == tmp_path / "task"


def test_another_task_has_a_run_of_its_own(place: Path, tmp_path: Path) -> None:
    other = write_task(tmp_path / "other")
    written(place, WHOLE + "name: lights\nfolder: results/lights\n")

    def named(*overrides: str) -> tuple[str, str]:
        recipe = read_recipe(place, overrides)
        return recipe.name, str(recipe.folder)

    assert named() == named(f"task={tmp_path / 'task'}") == ("lights", "results/lights")
    assert named(f"task={other}") == ("other", "runs/other")
    assert named(f"task={other}", "name=x") == ("x", "runs/x")
    assert named(f"task={other}", "folder=here") == ("other", "here")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\n", r"not readable as YAML: .*line 2"),
        ("- 1\n", r"a recipe is a mapping; found list"),
        ("", r"a recipe is a mapping; found NoneType"),
        ("task: !!python/object/apply:os.system [ls]\n", r"not readable as YAML"),
    ],
)
def test_bad_yaml_is_told(text: str, told: str, place: Path) -> None:
    with pytest.raises(UserError, match=told):
        read_recipe(written(place, text))


def test_a_recipe_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.yaml is not there"):
        read_recipe(tmp_path / "gone.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("override", "section", "value"),
    [
        ("prototype.pool_rows=5", "prototype.pool_rows", 5),
        ("prototype.budget.dollars=2.5", "prototype.budget.dollars", 2.5),
        ("prototype.steps.2.samples=9", "prototype.steps.2", {"method": "vote", "samples": 9}),
        ("prototype.steps.0.examples=4", "prototype.steps.0", {"method": "retrieve", "examples": 4}),
        ("prototype.steps.1=check", "prototype.steps.1", "check"),
        ("prototype.steps=[fill]", "prototype.steps", ["fill"]),
        ("prototype.engine.model=x", "prototype.engine", {"method": "openvino", "model": "x"}),
        ("transfer.format={method: compact}", "transfer.format", {"method": "compact"}),
        ("compress.steps=[]", "compress.steps", []),
        ("prototype.note=a=b", "prototype.note", "a=b"),
    ],
)
def test_overrides(override: str, section: str, value: object, place: Path) -> None:
    found: object = read_recipe(place, [override]).sections
    for part in section.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]  # type: ignore[index]
    assert found == value


def test_later_overrides_see_earlier_ones_and_empty_sections_are_filled(place: Path) -> None:
    written(place, "task: task\nprototype:\n")
    recipe = read_recipe(place, ["prototype.steps=[fill, vote]", "prototype.steps.1.samples=4", "seed=3", "name=x"])
    assert recipe.sections["prototype"] == {"steps": ["fill", {"method": "vote", "samples": 4}]}
    assert (recipe.seed, recipe.name) == (3, "x")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("prototype.steps.3=x", "3 is not one of the places 0 to 2"),
        ("prototype.steps.first.samples=1", "first is not one of the places 0 to 2"),
        ("prototype.steps.-1=x", "-1 is not one of the places"),
        ("=3", "not of the form"),
        ("a", "not of the form"),
        ("seed=[", "the value is not YAML"),
        ("task.name=3", "task holds 'task', which has no settings"),
    ],
)
def test_overrides_that_cannot_be_are_told(override: str, told: str, place: Path) -> None:
    (line,) = mistakes(place, override)
    assert told in line
    assert override in line


def test_the_recipe_as_it_was_run_is_read_back(place: Path, tmp_path: Path) -> None:
    recipe = read_recipe(place, ["prototype.steps.0.examples=4", "transfer.note=свет 灯", f"folder={tmp_path / 'run'}"])
    again: Recipe = read_recipe(written(tmp_path / "again.yaml", recipe.text))
    assert again == recipe
    assert "свет 灯" in recipe.text
    assert yaml.safe_load(recipe.text)["prototype"]["steps"][0] == {"method": "retrieve", "examples": 4}


def test_mistakes_of_the_top_and_inside_the_sections_are_told_together(place: Path) -> None:
    written(
        place,
        "task: nowhere\ntrasnfer: {}\nprototype: {steps: [fil], chunk: 0, plain_rows: -3, engine: {method: openvino,"
        " max_batch: 0}}\ncompress: {parity: 3}\ntransfer: {student: task}\n",
    )
    (place.parent / "task" / "notes.txt").write_text("no model")
    with pytest.raises(UserErrors) as told:
        pipeline.load_recipe(place, [f"transfer.student={place.parent / 'task'}"])
    whole = "\n".join(str(error) for error in told.value.errors)
    for words in ("nowhere", "trasnfer", "'fil'", "prototype.chunk", "prototype.plain_rows", "compress.parity"):
        assert words in whole, words
    assert f"transfer.student: there is no model '{place.parent / 'task'}'" in whole


def test_names_of_folders_are_text_whatever_yaml_makes_of_them(place: Path) -> None:
    recipe = read_recipe(place, ["folder=2026-11-21", "name=007", "seed=9"])
    assert (recipe.folder, recipe.name, recipe.seed) == (Path("2026-11-21"), "007", 9)
