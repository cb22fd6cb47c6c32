"""An artifact: one model file and the card that says what it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.files import read_json, sha256_of, write_json

_CARD = "artifact.json"
_MODEL = "model.gguf"
_OTHER = "model.safetensors"  # of the exporters that write a folder for vLLM or for keeping


def opens_here(folder: Path) -> bool:
    """Whether an engine of ours opens the artifact in the folder; one of safetensors is for vLLM, or for keeping."""
    return not (folder / _OTHER).is_file()


@dataclass(frozen=True)
class Artifact:
    """What the compress stage makes; a GGUF opens in llama.cpp as it stands, and is served."""

    folder: Path
    format: Any
    """Block of the format that the model was taught: a name, or `{method, ...}`."""
    type: str
    """How its matrices are stored: a type of gguf, int4, int8 or dfloat11."""
    bytes: int
    sha256: str
    parameters: int
    source: str = ""
    """Name of the model that the student was made from."""

    @property
    def model(self) -> Path:
        other = self.folder / _OTHER
        return other if other.is_file() else self.folder / _MODEL

    @classmethod
    def of(cls, folder: Path, format: Any, type: str, parameters: int, source: str = "") -> Artifact:
        """The artifact whose model file stands in the folder; measures and hashes it."""
        model = cls(folder, format, type, 0, "", parameters).model
        return cls(folder, format, type, model.stat().st_size, sha256_of(model), parameters, source)

    def save_card(self) -> None:
        names = ("format", "type", "bytes", "sha256", "parameters", "source")
        write_json(self.folder / _CARD, {name: getattr(self, name) for name in names})

    @classmethod
    def open(cls, folder: Path) -> Artifact:
        """Reads the card and verifies the model file. Raises UserError where either is not what it should be."""
        card = read_json(folder / _CARD)
        try:
            artifact = cls(folder, **card)
        except TypeError:
            raise UserError(f"{folder / _CARD} is no card of an artifact", "run the compress stage again") from None
        model = artifact.model
        if not model.is_file():
            raise UserError(f"{model} is not there", "run the compress stage again")
        if model.stat().st_size != artifact.bytes:
            found = model.stat().st_size
            raise UserError(f"{model} has {found} bytes, not {artifact.bytes}", "it was cut off: run compress again")
        if sha256_of(model) != artifact.sha256:
            raise UserError(f"{model} has another sha256 than its card says", "it was changed: run compress again")
        return artifact
