"""What every exporter reads of a student's folder: its configuration, its tensors, the files beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from supertiny.core.errors import UserError
from supertiny.core.files import read_json

_AGAIN = "make the student again"
_NUMBERS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def read_config(student: Path, exporter: str, architectures: Collection[str]) -> dict[str, Any]:
    """config.json of a student of one of these architectures.

    Raises UserError where it is of another, lacks a number, or is quantized already.
    """
    config = read_json(student / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{student / 'config.json'} is no configuration of a model", _AGAIN)
    name = (config.get("architectures") or ["unknown"])[0]
    if name not in architectures:
        raise UserError(f"{student}: {exporter} cannot write {name}", f"it writes {', '.join(sorted(architectures))}")
    if config.get("quantization_config"):
        raise UserError(f"{student} is quantized already", f"give {exporter} the student with plain weights")
    lacking = [key for key in _NUMBERS if not isinstance(config.get(key), int) or config[key] < 1]
    if lacking:
        raise UserError(f"{student / 'config.json'} lacks {', '.join(lacking)}", _AGAIN)
    return config


def tensors_of(student: Path, config: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """By name, what reads a tensor as torch's; an output that is tied to the embedding is left out.

    Raises UserError where a file is missing, cut short or no safetensors file.
    """
    found: dict[str, Callable[[], Any]] = {}
    paths = sorted(student.glob("*.safetensors"))
    if not paths:
        raise UserError(f"{student} holds no safetensors file", _AGAIN)
    for path in paths:
        for name, read in read_safetensors(path)[0]:
            if name != "lm_head.weight" or not config.get("tie_word_embeddings"):
                found[name] = read
    return found


def read_safetensors(path: Path) -> tuple[list[tuple[str, Callable[[], Any]]], dict[str, str]]:
    """(name, what reads the tensor) for each tensor, and the metadata. Raises UserError for a broken file."""
    try:
        file: Any = safe_open(path, "pt")
        return [(name, partial(file.get_tensor, name)) for name in file.keys()], file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error})", _AGAIN) from None


def beside_the_weights(student: Path) -> Iterator[Path]:
    """Files that a stock folder needs beside its weights: configuration, tokenizer, chat template."""
    for path in sorted(student.iterdir()):
        known = path.suffix in (".json", ".jinja", ".txt", ".model")
        if path.is_file() and known and path.name not in _OF_OURS and not path.name.endswith(".index.json"):
            yield path


_OF_OURS = ("supertiny.json", "training.json", "artifact.json")


def copy_beside(student: Path, folder: Path) -> None:
    """Copies them. Raises UserError where the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in beside_the_weights(student):
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}", "free some disk space") from error


def json_in(text: str | None, path: Path, exporter: str) -> dict[str, Any]:
    """What an exporter wrote of its tensors into a file's metadata. Raises UserError where it is not there."""
    try:
        told = json.loads(text or "")
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise UserError(f"{path} was not written by {exporter}", "give a file that it wrote")
    return told
