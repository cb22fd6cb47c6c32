"""An example that is copied out is a task of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from supertiny.core.errors import UserError
from supertiny.core.recipe import read_recipe
from supertiny.core.task import load_task
from supertiny.core.task_import import copy_example


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
