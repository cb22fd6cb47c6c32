"""Models of the catalogue as stock Hugging Face folders."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from supertiny.core.errors import UserError
from supertiny.core.models import catalogue, path_of, store


def huggingface_folder(name: str, setting: str) -> Path:
    """A folder as it is, or one made once from a model of the catalogue. Raises UserError that names the setting."""
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if name not in catalogue():
        raise UserError(
            f"{setting}: {name!r} is neither a folder with a config.json nor a known model", "see `supertiny models`"
        )
    from supertiny.engines._gguf_to_hf import load_gguf_student

    folder = store() / "huggingface" / f"{name}-{catalogue()[name].sha256[:8]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that want one model: the second waits and finds it there.
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            beside = folder.with_name(f".{folder.name}.part")
            if beside.exists():  # what a killed process left
                shutil.rmtree(beside)
            load_gguf_student(path_of(name), beside)
            beside.rename(folder)
    return folder
