"""The order of the stages, without their work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from supertiny import pipeline
from supertiny.core.progress import Progress
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

    def work(stage: str, settings: Mapping[str, Any], run: Run, folder: Path) -> Mapping[str, Any]:
        done.append(stage)
        if stage == "compress":
            (folder / "artifact").mkdir(parents=True)
            (folder / "artifact" / model).touch()
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
