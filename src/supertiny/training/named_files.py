"""Files and folders that learners name: what stands in them is part of what a stage read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.files import hash_of, read_json, sha256_of
from supertiny.core.methods import build

FILES = "files.json"  # in the folder of a finished stage: what it has read


def named_files(settings: Any, stage: str, done: Path | None = None) -> dict[str, str]:
    """Hashes of the files and folders that the learners of a stage's settings name, by path.

    One that is gone counts as the finished stage in the folder `done` has read it. Raises UserErrors with every place
    whose file is nowhere or cannot be read.
    """
    known = read_json(done / FILES) if done is not None and (done / FILES).exists() else {}
    found: dict[str, str] = {}
    errors = []
    for place, path in _named(settings, stage):
        try:
            found[str(path)] = _contents(path)
        except FileNotFoundError:
            if str(path) in known:
                found[str(path)] = known[str(path)]
            else:
                errors.append(UserError(f"{place}: {path} is not there"))
        except OSError as error:
            errors.append(UserError(f"{place}: {path} cannot be read: {error.strerror or error}"))
    if errors:
        raise UserErrors(errors)
    return found


def _named(settings: Any, stage: str) -> Iterator[tuple[str, Path]]:
    """Whatever is a Path among the settings of a learner, by its place."""
    for place, block in _blocks(settings, stage).items():
        learner = build("learners", block, place)
        for setting in fields(learner):
            if isinstance(path := getattr(learner, setting.name), Path):
                yield f"{place}.{setting.name}", path


def _blocks(settings: Any, stage: str) -> dict[str, Any]:
    """Of the learners of a stage's settings that have settings themselves, by place."""
    found: dict[str, Any] = {}
    for setting in fields(settings):
        if setting.metadata.get("family") == "learners":
            value, place = getattr(settings, setting.name), f"{stage}.{setting.name}"
            several = isinstance(value, list | tuple)
            found |= {f"{place}.{n}": block for n, block in enumerate(value)} if several else {place: value}
    return {place: block for place, block in found.items() if isinstance(block, Mapping)}


def _contents(path: Path) -> str:
    """Hash of a file, or of all that a folder holds. Raises OSError where a part of it is absent or not readable."""
    if path.is_file():
        return _hash_of_file(path, path.stat().st_size, path.stat().st_mtime_ns)
    return hash_of({inner.name: _contents(inner) for inner in sorted(path.iterdir())})


@cache
def _hash_of_file(path: Path, size: int, changed: int) -> str:
    """Read once as long as size and time of change stay: a recipe is checked several times, and files may be large."""
    return sha256_of(path)
