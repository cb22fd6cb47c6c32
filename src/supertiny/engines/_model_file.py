"""Which model an engine opens, and the identity under which the ledger knows it."""

from __future__ import annotations

from pathlib import Path

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, sha256_of


def file_and_name(model: str, override: Path | None) -> tuple[Path, str]:
    """(path of the model file, identity): a catalogue's name, or the hash of a file that was given by path."""
    if override is None and not model:
        raise UserError("the engine has no model", "set `model` to a name of the catalogue or to a path")
    path = override or Path(model)
    if override is None and "/" not in model and not model.endswith(".gguf") and not path.exists():
        from supertiny.core.models import path_of

        return path_of(model), model
    if path.is_file():
        return path, f"{path.stem}-{sha256_of(path)[:16]}"
    return path, f"{path.name}-{_folder_hash(path)}"


def _folder_hash(folder: Path) -> str:
    """Hash of what decides a Hugging Face folder's answers: weights, configuration, tokenizer."""
    read = sorted(file for file in folder.glob("*") if file.suffix in {".safetensors", ".json", ".jinja"})
    return hash_of({file.name: sha256_of(file) for file in read if file.name != "supertiny.json"})[:16]
