"""The stage writes what a server needs, and `ask` answers from it alone."""

from types import SimpleNamespace

import pytest

from supertiny.core import methods
from supertiny.core.artifact import Artifact
from supertiny.core.errors import UserError
from supertiny.core.files import read_json
from supertiny.core.methods import validated
from supertiny.core.progress import Progress
from supertiny.serve import service
from supertiny.serve.server import ask
from supertiny.serve.service import Service, open_artifact
from supertiny.serve.settings import Limits, Settings
from supertiny.serve.stage import run
from tests.fake_engine import FakeEngine
from tests.small_task import small_task


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run folder with an artifact whose engine always writes one call of the first tool."""
    task = small_task()
    folder = tmp_path / "compress" / "artifact"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"weights")
    Artifact.of(folder, "compact", "q4_0", 3).save_card()
    opened = []

    class Engine(FakeEngine):
        def close(self):
            self.closed = True

    def build(family, block, place=""):
        if family != "engines":
            return methods.build(family, block, place)

        def open_model(model):
            assert model == folder / "model.gguf"
            opened.append(Engine(lambda prompt, sampling, grammar: f"{task.tools[0].name} area Hall"))
            return opened[-1]

        return SimpleNamespace(open=open_model)

    monkeypatch.setattr(service, "build", build)
    return SimpleNamespace(folder=tmp_path, task=task, progress=Progress(quiet=True)), opened


def test_what_the_stage_writes_is_what_the_server_reads(made):
    given, opened = made
    settings = validated(
        Settings, {"router": "confidence", "threshold": 0.3, "max_tokens": 50, "limits": {"batch": 4}}, "serve"
    )
    place = given.folder / "serve"
    summary = run(settings, given, place)
    assert summary["first_answer"]["outcome"] in ("pass", "fail", "abstain")
    assert {prompt for prompt, _, _ in opened[0].asked} == {opened[0].asked[0][0]}  # one request, asked anew or not
    assert opened[0].closed
    written = read_json(place / "serve.json")
    assert written["artifact"] == "compress/artifact"
    assert str(given.folder) not in (place / "serve.json").read_text(encoding="utf-8")
    read = Service.read(given.folder)
    assert read == Service(
        given.task.name, "compress/artifact", "compact", settings, given.task.tools, given.task.description
    )
    assert read.settings.limits == Limits(batch=4)
    assert read.routing.threshold == 0.3
    assert ask(given.folder, "anything") == f'{{"name": "{given.task.tools[0].name}", "arguments": {{"area": "Hall"}}}}'
    assert opened[-1].asked[0][1].max_tokens == 50
    assert open_artifact(given.folder, given.task.tools).name == "artifact"


def test_a_damaged_artifact_is_told(made):
    given, opened = made
    (given.folder / "compress" / "artifact" / "model.gguf").write_bytes(b"weighty")
    with pytest.raises(UserError, match="sha256"):
        run(Settings(), given, given.folder / "serve")
    assert not opened
    assert not (given.folder / "serve" / "serve.json").exists()


def test_a_router_that_is_not_there_is_told_before_the_model_is_opened(made):
    given, opened = made
    with pytest.raises(UserError, match=r"serve.router: routers has no method 'sometimes'"):
        run(Settings(router="sometimes"), given, given.folder / "serve")
    assert not opened


def test_a_broken_serve_json_is_told(made):
    given, _ = made
    (given.folder / "serve").mkdir()
    (given.folder / "serve" / "serve.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="run the serve stage again|not what the serve stage wrote"):
        Service.read(given.folder)


def test_an_artifact_that_no_engine_here_opens_is_told(made):
    given, opened = made
    folder = given.folder / "compress" / "artifact"
    (folder / "model.gguf").rename(folder / "model.safetensors")
    Artifact.of(folder, "compact", "int4", 3).save_card()
    with pytest.raises(UserError, match=r"no engine here opens .*model\.safetensors \(int4\)") as told:
        run(Settings(), given, given.folder / "serve")
    assert "vLLM" in told.value.hint
    assert not opened
