"""`supertiny compress`: what is typed, what is shown, and that each point can be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supertiny import cli
from supertiny.compress import search
from supertiny.core.artifact import Artifact
from supertiny.core.files import write_json
from supertiny.serve.service import Service
from tests.small_recipe import write_recipe


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Any:
    def type_command(*arguments: object) -> tuple[int, str, list[str]]:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err.splitlines()

    return type_command


def point(name: str, exact: float, size: int, **more: Any) -> dict[str, Any]:
    known = {
        "name": name,
        "steps": [{"method": "gguf", "type": "q8_0"}],
        "exact": exact,
        "low": 0.5,
        "high": 1.0,
        "n": 8,
    }
    known |= {"bytes": size, "p50_seconds": 0.02, "parameters": 1e6, "type": "q8_0", "over": {}, "on_front": True}
    return known | {"gate": {"broke": []}, "meets": True, "promoted": True} | more


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a student, and a search that has found something."""
    recipe = write_recipe(tmp_path)
    folder = tmp_path / "run"
    (folder / "transfer" / "student").mkdir(parents=True)
    asked: list[Any] = []

    def found(settings: Any, run: Any, budget: Any, count: int, minutes: float | None) -> dict[str, Any]:
        asked.append((budget.told(), count, minutes))
        place = run.folder / "compress_search"
        for name in ("q8_0", "blocks-1_q4_0"):
            artifact = place / "points" / name / "compress" / "artifact"
            artifact.mkdir(parents=True, exist_ok=True)
            (artifact / "model.gguf").write_bytes(b"weights")
            Artifact.of(artifact, "compact", "q8_0", 1).save_card()
        broke = {"gate": {"broke": ["exact calls went from 90.0 to 40.0 %"]}, "promoted": False, "on_front": False}
        points = [point("q8_0", 0.9, 9_000_000), point("blocks-1_q4_0", 0.4, 5_000_000, **broke)]
        points.append({"name": "odd", "steps": [], "failed": "no multiple of 32"})
        student = {"exact": 0.9}
        outcome = {"budget": budget.told(), "points": points, "chosen": "q8_0", "nearest": None, "student": student}
        write_json(place / "search.json", outcome)
        return outcome

    monkeypatch.setattr(search, "search", found)
    monkeypatch.setattr(cli, "_asked", asked, raising=False)
    recipe.rename(folder / "recipe.yaml")
    return folder


def test_the_front_is_shown_and_each_point_can_be_served(typed: Any, run_folder: Path) -> None:
    write_json(run_folder / "manifest.json", {})
    budget = "bytes<=60MB, drop<=1pt"
    status, out, err = typed("compress", run_folder, "--budget", budget, "--plans", 3, "--minutes", 5)
    assert status == 0, err
    assert cli._asked == [("bytes<=60MB, drop<=1pt", 3, 5.0)]  # type: ignore[attr-defined]
    assert "Within bytes<=60MB, drop<=1pt: q8_0." in out
    assert "* q8_0" in out
    assert "not promoted: exact calls went from 90.0 to 40.0 %" in " ".join(out.split())
    assert "odd cannot be had: no multiple of 32" in out
    assert 'compress.steps: [{"method": "gguf", "type": "q8_0"}]' in out
    assert "serve " in out
    for name in ("q8_0", "blocks-1_q4_0"):
        place = run_folder / "compress_search" / "points" / name
        service = Service.read(place)
        assert Artifact.open(place / service.artifact).type == "q8_0"
        assert (service.format, len(service.tools)) == ("compact", 3)


def test_overrides_hold_for_the_search_too(typed: Any, run_folder: Path) -> None:
    status, _, err = typed("compress", run_folder / "recipe.yaml", "compress.parity=2")
    assert status == 2
    assert any("parity" in line for line in err)


def test_a_wrong_budget_is_told_before_anything_is_done(typed: Any, run_folder: Path) -> None:
    status, _, err = typed("compress", run_folder / "recipe.yaml", "--budget", "byts<=60MB")
    assert (status, cli._asked) == (2, [])  # type: ignore[attr-defined]
    assert err == ["error: --budget: there is no limit 'byts' (did you mean 'bytes'?)"]


def test_without_a_student_there_is_nothing_to_compress(typed: Any, run_folder: Path) -> None:
    (run_folder / "transfer" / "student").rmdir()
    status, _, err = typed("compress", run_folder / "recipe.yaml")
    assert status == 2
    assert "has no student yet" in err[0]


def test_what_is_an_option_of_a_search_is_told_where_it_stands_as_a_setting(typed: Any, run_folder: Path) -> None:
    status, _, err = typed("compress", run_folder, "compress.budget=bytes<=60MB", "compress.parity=2")
    assert status == 2
    hint = "it is an option: supertiny compress RUN --budget 'bytes<=60MB'"
    assert err[0] == f"error: compress: there is no setting 'budget' ({hint})"
    assert "parity" in err[1]


def test_a_folder_without_a_recipe_is_told_that_a_run_would_do(typed: Any, tmp_path: Path) -> None:
    status, _, err = typed("compress", tmp_path)
    assert (status, len(err)) == (2, 1)
    assert err[0].startswith(f"error: {tmp_path / 'recipe.yaml'} is not there (give the path of a recipe, or of a")
    assert "holds recipe.yaml: a run, or a task" in err[0]


def test_help_teaches_units_what_fails_and_where_points_are(typed: Any, run_folder: Path) -> None:
    text = " ".join(typed("compress", "--help")[1].split())
    for words in ("need their units", "names the nearest plan", "none is chosen", "points/NAME/compress/artifact"):
        assert words in text
    assert "supertiny serve RUN/compress_search/points/NAME" in text
    write_json(run_folder / "manifest.json", {})
    out = typed("compress", run_folder)[1].replace("\n", "")
    assert f"serve {run_folder / 'compress_search' / 'points' / 'q8_0'}" in out


def test_help_has_an_example(typed: Any) -> None:
    status, out, _ = typed("compress", "--help")
    assert status == 0
    assert "Example: supertiny compress runs/smart_home" in " ".join(out.split())
