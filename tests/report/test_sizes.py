"""Sizes of models: what the answerer says, then the run's files, then the catalogue."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from supertiny.core.models import catalogue
from supertiny.report.sizes import model_bytes

SILENT: Any = SimpleNamespace()


def test_what_the_answerer_says_counts_first(fake_run: Any) -> None:
    assert model_bytes(fake_run, "pipeline", SimpleNamespace(bytes=7)) == 7  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("student", "transfer/student/model.safetensors"),
        ("labelled_only", "transfer/labelled_only/model.safetensors"),
        ("artifact", "compress/artifact/model.gguf"),
    ],
)
def test_a_model_of_the_run_is_as_big_as_its_file(fake_run: Any, name: str, file: str) -> None:
    path = fake_run.folder / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 321)
    assert model_bytes(fake_run, name, SILENT) == 321


def test_the_teachers_size_stands_in_the_catalogue(fake_run: Any) -> None:
    name, model = next(iter(catalogue().items()))
    fake_run.recipe.sections = {"prototype": {"engine": {"method": "openvino", "model": name}}}
    assert model_bytes(fake_run, "pipeline", SILENT) == model.bytes > 0
    for engine in ("openvino", {"method": "openai", "model": "nobody/knows"}, None):
        fake_run.recipe.sections = {"prototype": {"engine": engine}}
        assert model_bytes(fake_run, "plain_prompt", SILENT) == 0
