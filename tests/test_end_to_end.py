"""The whole thread with real engines: files, figures, kills in every stage, and a second run that does nothing."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from supertiny import pipeline
from supertiny.core.artifact import Artifact
from supertiny.core.files import read_json, read_rows
from supertiny.core.progress import Progress
from supertiny.core.recipe import STAGES
from supertiny.core.student import Student
from tests.small_recipe import COUNTS, begin, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.model]

ANSWERERS = ("tfidf_floor", "labelled_only", "plain_prompt", "pipeline", "student", "artifact")
FIGURES = (
    *("exact", "exact_low", "exact_high", "n", "argument_f1", "p50_seconds", "p95_seconds"),
    *("bytes", "tokens_in", "tokens_out", "dollars_per_1000"),
)
FILES = (
    "recipe.yaml",
    "manifest.json",
    "ledger.sqlite",
    "lock",
    "prototype/train.jsonl",
    "prototype/pool.jsonl",
    "prototype/valid.jsonl",
    "transfer/student/config.json",
    "transfer/student/model.safetensors",
    "transfer/student/supertiny.json",
    "transfer/labelled_only/model.safetensors",
    "transfer/labelled_only/supertiny.json",
    "transfer/history.jsonl",
    "compress/student/model.safetensors",
    "compress/artifact/model.gguf",
    "compress/artifact/artifact.json",
    "compress/steps.json",
    "serve/serve.json",
    "report/report.html",
    "report/report.json",
    "report/report.md",
    "report/rows.jsonl",
)


def calls(run: Path) -> dict[str, str]:
    """Completions by key, as the ledger has them."""
    if not (run / "ledger.sqlite").exists():
        return {}
    with sqlite3.connect(run / "ledger.sqlite") as ledger:
        return dict(ledger.execute("SELECT key, completion FROM calls"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("thread"))


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    """A run that is killed once in every stage, and goes on each time."""
    folder = recipe.parent / "run"
    for stage in STAGES:
        paid = calls(folder)
        done = {name: (folder / name).stat().st_ino for name in STAGES if (folder / name).exists()}
        process = begin(recipe)
        # In the middle of the stage: it has written something. Serve writes its one file at its end.
        begun = f".{stage}.*" if stage == "serve" else f".{stage}.*/*"
        while process.poll() is None and not any(folder.glob(begun)):
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()[1].decode()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert paid.items() <= calls(folder).items(), "no call is lost or paid twice"
        assert all((folder / name).stat().st_ino == number for name, number in done.items()), "no stage is done twice"
    process = begin(recipe)
    told = process.communicate()[1].decode()
    assert process.returncode == 0, told
    return folder


def test_every_file_stands_where_it_belongs(run: Path) -> None:
    assert [name for name in FILES if not (run / name).is_file()] == []
    assert not [path for stage in STAGES for path in run.glob(f".{stage}.*")]
    assert list(read_json(run / "manifest.json")["stages"]) == list(STAGES)


def test_rows_are_whole(run: Path) -> None:
    train, pool = read_rows(run / "prototype" / "train.jsonl"), read_rows(run / "prototype" / "pool.jsonl")
    assert len(pool) == COUNTS["unlabelled"]
    assert sum(row["provenance"]["source"] == "labelled" for row in train) == COUNTS["labelled"]
    assert all(row["verdict"]["outcome"] != "fail" for row in train if row["provenance"]["source"] == "pool")
    measured = read_rows(run / "prototype" / "valid.jsonl")
    assert [("pipeline" in row, "plain_prompt" in row) for row in measured] == [(True, True)] * 2 + [(True, False)] * 2
    steps = [(row["student"], row["learner"], row["step"]) for row in read_rows(run / "transfer" / "history.jsonl")]
    assert len(steps) == len(set(steps))


def test_students_and_artifact_are_stock(run: Path) -> None:
    taught, smaller = (Student.open(run / stage / "student") for stage in ("transfer", "compress"))
    assert smaller.parameters < taught.parameters
    model = AutoModelForCausalLM.from_pretrained(smaller.folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == smaller.parameters
    with safe_open(taught.folder / "model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    artifact = Artifact.open(run / "compress" / "artifact")
    assert artifact.type == "q8_0"
    assert artifact.bytes < 0.6 * smaller.bytes


def test_the_report_has_what_acceptance_relies_on(run: Path) -> None:
    report = read_json(run / "report" / "report.json")
    by_name = {entry["name"]: entry for entry in report["answerers"]}
    assert tuple(by_name) == ANSWERERS
    for entry in by_name.values():
        assert all(isinstance(entry[name], int | float) for name in FIGURES), entry
        assert 0 <= entry["exact_low"] <= entry["exact"] <= entry["exact_high"] <= 1
        assert entry["n"] == COUNTS["test"]
        assert 0 < entry["p50_seconds"] <= entry["p95_seconds"]
    assert by_name["artifact"]["tokens_in"] < by_name["plain_prompt"]["tokens_in"]
    rows = read_rows(run / "report" / report["rows"])
    assert len(rows) == COUNTS["test"]
    for row in rows:
        assert row["request"]
        assert row["gold"]
        assert set(row["answers"]) == set(ANSWERERS)
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ANSWERERS)


def test_a_second_run_does_nothing(run: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for stage in STAGES for path in (run / stage).rglob("*")}
    paid, manifest = calls(run), (run / "manifest.json").read_bytes()
    monkeypatch.setattr(pipeline, "_work", None)  # whoever works is told so
    assert pipeline.execute(pipeline.load_recipe(recipe), progress=Progress(quiet=True)) == run
    assert {path: path.stat().st_mtime_ns for stage in STAGES for path in (run / stage).rglob("*")} == before
    assert (calls(run), (run / "manifest.json").read_bytes()) == (paid, manifest)


def test_the_recipe_in_the_run_folder_gives_the_same_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_work", None)
    assert pipeline.execute(pipeline.load_recipe(run / "recipe.yaml"), progress=Progress(quiet=True)) == run
    assert json.dumps(read_json(run / "manifest.json"))
