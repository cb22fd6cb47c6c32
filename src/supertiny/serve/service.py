"""serve.json: all that a server needs of a run, so that it needs neither the recipe nor the task folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supertiny.core.artifact import Artifact
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, write_json
from supertiny.core.methods import build, validated
from supertiny.core.protocols import Answerer, Engine
from supertiny.core.records import Answer, Request, Tool
from supertiny.formats._answerer import ModelAnswerer
from supertiny.serve.routing import Routing
from supertiny.serve.settings import Settings

_FILE = "serve.json"


@dataclass(frozen=True)
class Service:
    """A run's artifact and how it is served."""

    model: str
    """Name that clients ask for."""
    artifact: str
    """The artifact's folder, relative to the run's."""
    format: Any
    settings: Settings
    tools: tuple[Tool, ...]
    description: str = ""
    """The task's; clients that still send it as their system message need not change."""

    @property
    def routing(self) -> Routing:
        return Routing(build("routers", self.settings.router, "serve.router"), self.settings.threshold)

    def save(self, folder: Path) -> None:
        settings = asdict(self.settings)
        tools = [tool.to_openai() for tool in self.tools]
        head = {"model": self.model, "artifact": self.artifact, "format": self.format}
        head["description"] = self.description
        write_json(folder / _FILE, {**head, **settings, "tools": tools})

    @classmethod
    def read(cls, run_folder: Path) -> Service:
        """Raises UserError where the run has no serve.json or a broken one."""
        path = run_folder / "serve" / _FILE
        if not path.is_file():
            raise UserError(f"{path} is not there", "let the run end first: supertiny run RECIPE")
        values = read_json(path)
        try:
            head = {name: values.pop(name) for name in ("model", "artifact", "format")}
            head["description"] = values.pop("description", "")
            tools = tuple(Tool.from_openai(tool) for tool in values.pop("tools"))
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{path} is not what the serve stage wrote", "run the serve stage again") from None
        return cls(**head, settings=validated(Settings, values, str(path)), tools=tools)

    @contextmanager
    def opened(self, run_folder: Path) -> Iterator[Answerer]:
        """The artifact as an answerer; its engine is closed at the end of the block."""
        engine = self._engine(run_folder)
        try:
            yield self._answerer(engine, self.tools)
        finally:
            engine.close()

    def _engine(self, run_folder: Path) -> Engine:
        artifact = Artifact.open(run_folder / self.artifact)
        engine: Engine = build("engines", self.settings.engine, "serve.engine").open(artifact.model)
        return engine

    def _answerer(self, engine: Engine, tools: Sequence[Tool] | Mapping[str, Tool]) -> Answerer:
        format = build("formats", self.format, "format")
        return ModelAnswerer("artifact", engine, format, tools, self.settings.max_tokens)


def ask_all(run_folder: Path, texts: Sequence[str]) -> list[Answer]:
    """One answer of the run's artifact per text, in order."""
    service = Service.read(run_folder)
    with service.opened(run_folder) as answerer:
        return answerer.answer([Request.from_text(text, str(place)) for place, text in enumerate(texts)])


def open_artifact(run_folder: Path, tools: Sequence[Tool] | Mapping[str, Tool]) -> Answerer:
    """The artifact as it is served, for whoever measures it; its engine stays open as long as the answerer."""
    service = Service.read(run_folder)
    return service._answerer(service._engine(run_folder), tools)
