"""The store of model files: a catalogue of what there is, and verified files on disk.

Files live in `$SUPERTINY_MODELS` or `~/.cache/supertiny/models`, as NAME.gguf. A file is used only if its size and
sha256 are the publisher's. Own entries go into `catalogue.yaml` there or into `~/.config/supertiny/models.yaml`,
in the shape of the catalogue beside this module.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock

from supertiny.core.errors import UserError, UserErrors, nearest_word
from supertiny.core.files import sha256_of, write_json
from supertiny.core.methods import validated
from supertiny.core.model_sources import Hub, LocalFile, Packages, Progress, Source, SourceFailedError

BUILT_IN = Path(__file__).with_name("catalogue.yaml")
SOURCES: Mapping[str, type[Any]] = {"hub": Hub, "packages": Packages, "file": LocalFile}

Note = Callable[[str], None]
"""Called with a line of text that a person may want to see."""
State = Literal["verified", "unverified", "partial", "absent"]


@dataclass(frozen=True)
class Model:
    """An entry of the catalogue."""

    name: str
    """The name that recipes use."""
    publisher: str
    """Who made the weights, as the hub writes it."""
    licence: str
    """SPDX identifier."""
    bytes: int
    """Size of the file."""
    sha256: str
    """The publisher's hash of the file."""
    sources: tuple[tuple[str, Any], ...]
    """Where the file can be had, as (kind, source), in the order in which they are tried."""


def store() -> Path:
    """The folder of model files."""
    folder = os.environ.get("SUPERTINY_MODELS")
    return Path(folder).expanduser() if folder else Path.home() / ".cache/supertiny/models"


def catalogue() -> dict[str, Model]:
    """All models by name; an own entry replaces a built-in one of the same name.

    Raises UserErrors with every mistake in an own catalogue and its place.
    """
    entries = _read(BUILT_IN)
    for own in (Path.home() / ".config/supertiny/models.yaml", store() / "catalogue.yaml"):
        if own.is_file():
            entries |= _read(own)
    return entries


def model_of(name: str) -> Model:
    """One entry. Raises UserError with the nearest name."""
    known = catalogue()
    if name not in known:
        raise UserError(f"there is no model {name!r} in the catalogue", nearest_word(name, known))
    return known[name]


def absent_models(named: Mapping[str, str]) -> list[UserError]:
    """Of models by the places that name them, those that are neither in the catalogue nor a file or folder here."""
    known = catalogue()
    return [
        UserError(f"{place}: there is no model {name!r}", nearest_word(name, known))
        for place, name in named.items()
        if name not in known and not Path(name).is_file() and not (Path(name) / "config.json").is_file()
    ]


def path_of(name: str, progress: Progress | None = None, note: Note | None = None) -> Path:
    """A verified local file of the model, fetched if it is not there. Raises UserError."""
    model = model_of(name)
    path = _path(model)
    if path.is_file():
        if not _is_stamped(model, path):
            _check(model, path)
        return path
    return fetch(name, progress, note)


def fetch(name: str, progress: Progress | None = None, note: Note | None = None) -> Path:
    """Brings the model's file into the store, going on where an earlier try stopped.

    `progress(bytes_done, bytes_total, what)` is called often, `note(line)` where a source is given up. Raises UserError
    where no source has the file, naming each source's reason and where to put the file by hand.
    """
    model = model_of(name)
    path = _path(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that want one model: the second waits and finds it there.
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                _bring(model, path, progress or _no_progress, note or logging.getLogger(__name__).info)
            elif not _is_stamped(model, path):
                _check(model, path)
    except OSError as error:
        hint = "free some disk space, check rights, or set SUPERTINY_MODELS to another folder"
        raise UserError(f"model {name}: cannot write to {path.parent}: {error.strerror or error}", hint) from error
    return path


def verify(name: str) -> Path:
    """Hashes the stored file anew. Raises UserError where it is absent or wrong; a wrong one is moved aside."""
    model = model_of(name)
    path = _path(model)
    if not path.is_file():
        raise UserError(f"model {name}: {path} is not there", f"supertiny models fetch {name}")
    _check(model, path)
    return path


def status(name: str) -> State:
    """What the store has of a model, without hashing it."""
    model = model_of(name)
    path = _path(model)
    if path.is_file():
        return "verified" if _is_stamped(model, path) else "unverified"
    return "partial" if _leftovers(path) else "absent"


def _bring(model: Model, path: Path, progress: Progress, note: Note) -> None:
    reasons = []
    for kind, source in model.sources:
        part = path.with_name(f"{path.name}.{kind}.part")
        try:
            source.fill(part, model.bytes, progress)
            wrong = _wrong(model, part)
        except SourceFailedError as error:
            reasons.append(f"{source}: {error}")
        else:
            if not wrong:
                part.replace(path)
                _stamp(model, path)
                _remove(_leftovers(path))
                return
            reasons.append(f"{source}: {wrong}; refused")
            _remove(left for left in _leftovers(path) if left.name.startswith(f"{path.name}.{kind}."))
        note(f"model {model.name}: {reasons[-1]}")
    raise UserError(f"model {model.name}: " + "; ".join(reasons), _by_hand(model, path))


def _by_hand(model: Model, path: Path) -> str:
    address = next((source.url for kind, source in model.sources if kind == "hub"), "the file")
    return f"with no network here, download {address} elsewhere and put it at {path}, or set SUPERTINY_MODELS"


def _wrong(model: Model, path: Path) -> str:
    """What is wrong with a file, or nothing."""
    size_bytes = path.stat().st_size
    if size_bytes != model.bytes:
        return f"has {size_bytes} bytes, the publisher's has {model.bytes}"
    found = sha256_of(path)
    return "" if found == model.sha256 else f"sha256 is {found}, the publisher's is {model.sha256}"


def _check(model: Model, path: Path) -> None:
    """Hashes a stored file; a wrong one is moved aside, so that it cannot be used and can be looked at."""
    wrong = _wrong(model, path)
    if not wrong:
        _stamp(model, path)
        return
    aside = path.with_name(f"{path.name}.refused")
    path.replace(aside)
    _stamp_path(path).unlink(missing_ok=True)
    hint = f"it was moved to {aside}; supertiny models fetch {model.name}"
    raise UserError(f"model {model.name}: {wrong}; refused", hint)


def _stamp_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _stamp_of(model: Model, path: Path) -> dict[str, Any]:
    facts = path.stat()
    return {"sha256": model.sha256, "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}


def _stamp(model: Model, path: Path) -> None:
    """Notes that this very file was found right, so that the next opening need not hash it."""
    # A shared store may be read-only: the file is as right without the note, and is hashed again next time.
    if os.access(path.parent, os.W_OK):
        write_json(_stamp_path(path), _stamp_of(model, path))


def _is_stamped(model: Model, path: Path) -> bool:
    try:
        noted = json.loads(_stamp_path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return bool(noted == _stamp_of(model, path) and noted["bytes"] == model.bytes)


def _path(model: Model) -> Path:
    return store() / f"{model.name}.gguf"


def _leftovers(path: Path) -> list[Path]:
    """Unfinished downloads of a model: parts and folders of wheels."""
    return [left for kind in SOURCES for left in path.parent.glob(f"{path.name}.{kind}.*")]


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _no_progress(bytes_done: int, bytes_total: int, what: str) -> None:
    """For callers that show none."""


def _read(path: Path) -> dict[str, Model]:
    """The entries of one catalogue file. Raises UserErrors with line and key of each mistake."""
    try:
        text = path.read_text(encoding="utf-8")
        blocks = yaml.safe_load(text) or {}
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}") from None
    if not isinstance(blocks, Mapping):
        raise UserError(f"{path}: must map names to models; found {type(blocks).__name__}")
    lines = {key.value: key.start_mark.line + 1 for key, _ in root.value} if root and blocks else {}
    entries: dict[str, Model] = {}
    errors: list[UserError] = []
    for name, block in blocks.items():
        try:
            entries[name] = _entry(name, block, f"{path}:{lines.get(str(name), 1)}: {name}", path.parent)
        except UserErrors as error:
            errors += error.errors
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    return entries


def _entry(name: Any, block: Any, place: str, folder: Path) -> Model:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"{place}: a name is letters, digits, dots, dashes and underscores")
    if not isinstance(block, Mapping):
        raise UserError(f"{place}: must map settings to values; found {block!r}")
    errors: list[UserError] = []
    sources = block.get("sources")
    if not isinstance(sources, list) or not sources:
        errors.append(UserError(f"{place}.sources: must list hub, packages or file blocks; found {sources!r}"))
        sources = []
    built = []
    for number, source in enumerate(sources, 1):
        try:
            built.append(_source(source, f"{place}.sources.{number}", folder))
        except UserError as error:
            errors += error.errors if isinstance(error, UserErrors) else [error]
    try:
        model: Model = validated(Model, {**block, "name": name, "sources": built}, place)
        errors += _figures(model, place)
    except UserError as error:
        errors += error.errors if isinstance(error, UserErrors) else [error]
    if errors:
        raise UserErrors(errors)
    return model


def _figures(model: Model, place: str) -> list[UserError]:
    errors = []
    if not re.fullmatch("[0-9a-f]{64}", model.sha256):
        errors.append(UserError(f"{place}.sha256: must be 64 hexadecimal digits in lower case; found {model.sha256!r}"))
    if model.bytes <= 0:
        errors.append(UserError(f"{place}.bytes: must be positive; found {model.bytes}"))
    return errors


def _source(block: Any, place: str, folder: Path) -> tuple[str, Source]:
    if not isinstance(block, Mapping) or len(block) != 1 or not isinstance(next(iter(block.values())), Mapping):
        raise UserError(f"{place}: must be one of hub, packages, file with its settings; found {block!r}")
    kind, settings = next(iter(block.items()))
    if kind not in SOURCES:
        raise UserError(f"{place}: there is no source {kind!r}", nearest_word(str(kind), SOURCES))
    source: Source = validated(SOURCES[kind], settings, f"{place}.{kind}")
    if isinstance(source, LocalFile):
        source = replace(source, path=str(folder / Path(source.path).expanduser()))
    return kind, source
