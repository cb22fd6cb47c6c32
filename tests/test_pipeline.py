"""The order of the stages, without their work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from supertiny import pipeline
from supertiny.core.errors import UserError
from supertiny.core.progress import Progress
from supertiny.core.recipe import STAGES
from supertiny.core.run import Run
from tests.small_recipe import write_recipe


@pytest.mark.parametrize(
    ("model", "stages"),
    [
        ("model.gguf", ["prototype", "transfer", "compress", "serve", "report"]),
        ("model.safetensors", ["prototype", "transfer", "compress", "report"]),
    ],
)
def test_what_no_engine_here_opens_is_reported_without_being_served(
    model: str, stages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    measured: list[set[str]] = []

    def work(stage: str, settings: Mapping[str, Any], run: Run, funfit: Path) -> Mapping[str, Any]:
        done.append(stage)
        if stage == "compress":
            (funfit / "artifact").mkdir(parents=True)
            (funfit / "artifact" / model).touch()
        if stage == "report":
            measured.append(set(pipeline.answerers(settings, run)))
        return {}

    monkeypatch.setattr(pipeline, "_work", work)
    recipe = pipeline.load_recipe(write_recipe(tmp_path))
    pipeline.execute(recipe, progress=Progress(quiet=True))
    assert done == stages
    assert ("artifact" in measured[0]) == ("serve" in stages)
    pipeline.execute(recipe, progress=Progress(quiet=True))
    assert done == stages, "what is done is not done again"


def test_a_stage_that_is_done_alone_says_what_does_not_fit_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Progress, "note", lambda self, text: said.append(text))
    for stage in STAGES:
        monkeypatch.setattr(f"supertiny.{stage}.stage.run", partial(_note, [], stage))
    path = write_recipe(tmp_path)
    unfit = "[5/5] report: not of these settings; without --only it is made anew"
    pipeline.execute(pipeline.load_recipe(path), only="prototype")
    assert unfit not in said, "there is no report yet"
    pipeline.execute(pipeline.load_recipe(path))
    pipeline.execute(pipeline.load_recipe(path), only="serve")
    assert unfit not in said, "it is as it was"
    changed = pipeline.load_recipe(path, ["serve.engine=llama_cpp"])
    pipeline.execute(changed, only="serve")
    assert said[-2:] == ["[4/5] serve", unfit]
    pipeline.execute(changed)
    pipeline.execute(changed, only="serve")
    assert said[-1] == "[4/5] serve: done before, nothing to do"
    priced = pipeline.load_recipe(path, ["serve.engine=llama_cpp", "report.dollars_per_hour=0.5"])
    pipeline.execute(priced, only="serve")
    assert said[-2:] == ["[4/5] serve: done before, nothing to do", unfit]


def test_a_file_that_learners_name_is_needed_until_they_have_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    for stage in STAGES:
        monkeypatch.setattr(f"supertiny.{stage}.stage.run", partial(_note, done, stage))
    text, path = tmp_path / "domain.txt", write_recipe(tmp_path)
    told = [f"transfer.learners=[{{method: continual, domain: {text}}}]"]
    with pytest.raises(UserError, match=r"transfer\.learners\.0\.domain: .*domain\.txt is not there"):
        pipeline.load_recipe(path, told)
    text.write_text("one", encoding="utf-8")
    pipeline.execute(pipeline.load_recipe(path, told), progress=Progress(quiet=True))
    assert done == list(STAGES)
    text.unlink()
    pipeline.execute(pipeline.load_recipe(path, told), only="report", progress=Progress(quiet=True))
    assert done == list(STAGES)
    text.write_text("two", encoding="utf-8")
    pipeline.execute(pipeline.load_recipe(path, told), progress=Progress(quiet=True))
    assert done == [*STAGES, *STAGES[1:]], "another content is learned anew"
    text.unlink()
    changed = pipeline.load_recipe(path, [*told, "transfer.evaluations=2"])
    with pytest.raises(UserError, match=r"transfer\.learners\.0\.domain: .*domain\.txt is not there"):
        pipeline.execute(changed, progress=Progress(quiet=True))
    assert done == [*STAGES, *STAGES[1:]]


def _note(done: list[str], stage: str, *arguments: Any) -> dict[str, Any]:
    done.append(stage)
    return {}


@pytest.mark.parametrize("dollars", [0, 1])
def test_an_estimate_names_the_billed_engines_that_it_leaves_out(
    dollars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("supertiny.prototype.estimate.estimate", lambda *arguments: None)
    monkeypatch.setattr(Progress, "note", lambda self, text: said.append(text))
    hosted = {"method": "openai", "model": "m", "base_url": "http://localhost:1/v1", "dialect": "vllm"}
    hosted |= {"dollars_per_million_in": dollars, "dollars_per_million_out": dollars}
    reward = {"method": "brevity", "of": {"method": "judge", "engine": hosted}}
    learners = json.dumps([{"method": "reinforce", "reward": reward}, "distil"])
    told = [f"transfer.learners={learners}", f"transfer.teacher={json.dumps(hosted)}"]
    pipeline.execute(pipeline.load_recipe(write_recipe(tmp_path), told), estimate=True)
    places = "transfer.learners.0.reward.of.engine, transfer.teacher"
    assert said == ([f"  not in it: what learners ask of billed engines: {places}"] if dollars else [])
