"""A student: a stock Hugging Face folder and the card that says how to speak to it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.files import read_json, write_json

_CARD = "supertiny.json"


@dataclass(frozen=True)
class Student:
    """What the transfer stage makes; `AutoModelForCausalLM.from_pretrained(folder)` opens it without us."""

    folder: Path
    format: Any
    """Block of the format that the model was taught: a name, or `{method, ...}`."""
    base: str
    """Name of the model that it was made from."""
    seed: int

    def save_card(self) -> None:
        write_json(self.folder / _CARD, {"format": self.format, "base": self.base, "seed": self.seed})

    @classmethod
    def open(cls, folder: Path) -> Student:
        """Reads the card. Raises UserError where the folder holds no student."""
        card = read_json(folder / _CARD)
        try:
            student = cls(folder, card["format"], card["base"], card["seed"])
        except (KeyError, TypeError):
            raise UserError(f"{folder / _CARD} is no card of a student", "run the transfer stage again") from None
        if not student._weights:
            raise UserError(f"{folder} holds no safetensors file", "run the transfer stage again")
        return student

    @property
    def bytes(self) -> int:
        """Size of the weights on disk."""
        return sum(path.stat().st_size for path in self._weights)

    @property
    def parameters(self) -> int:
        """Number of weights, read from the headers of the safetensors files; a tied matrix counts once."""
        return sum(_count(path) for path in self._weights)

    @property
    def _weights(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))


def _count(path: Path) -> int:
    """Raises UserError where the file is cut off or no safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= path.stat().st_size - 8:
            raise UserError(f"{path} is no whole safetensors file", "run the transfer stage again")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise UserError(f"{path} is no whole safetensors file", "run the transfer stage again") from None
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
