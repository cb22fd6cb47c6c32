"""A run: the folder where a recipe's results stand. Files in it are the interface between stages."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from supertiny import __version__
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, write_json, write_text
from supertiny.core.ledger import Ledger
from supertiny.core.machine import processor_name, usable_cores
from supertiny.core.progress import Progress, every
from supertiny.core.recipe import Recipe
from supertiny.core.task import Task

_CLOCK_SECONDS = 5.0  # at most so much of a killed attempt's time is lost
_PACKAGES = ("torch", "transformers", "openvino-genai", "llama-cpp-python", "gguf", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """What every stage is given."""

    folder: Path
    recipe: Recipe
    task: Task
    ledger: Ledger
    progress: Progress

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        return read_json(path) if path.exists() else {}

    def is_done(self, stage: str, key: str) -> bool:
        known = self.manifest.get("stages", {}).get(stage, {})
        return known.get("key") == key and (self.folder / stage).is_dir()

    def do(self, stage: str, key: str, work: Callable[[Path], Mapping[str, Any]]) -> None:
        """Lets a stage write into a folder beside its place, which takes that place when the stage ends well.

        The folder's name holds the key, so that a stage that was killed finds what it had, unless settings changed.
        """
        beside = self.folder / f".{stage}.{key}"
        for stale in self.folder.glob(f".{stage}.*"):
            if stale != beside:
                shutil.rmtree(stale)
        beside.mkdir(exist_ok=True)
        with _clock(beside / ".seconds") as spent:
            summary = work(beside)
        place, old = self.folder / stage, self.folder / f".{stage}.old"
        if place.exists():
            place.rename(old)  # in one step: a folder that is half removed must never stand in its place
        # Told before the rename: a kill between the two leaves the folder beside its place, whole: nothing is lost.
        self._record(stage, key, spent(), summary)
        beside.rename(place)
        if old.exists():
            shutil.rmtree(old)

    def _record(self, stage: str, key: str, seconds: float, summary: Mapping[str, Any]) -> None:
        manifest = self.manifest
        manifest.update(
            supertiny=__version__,
            python=platform.python_version(),
            machine={"processor": processor_name(), "cores": usable_cores()},
            versions=package_versions(),
            seed=self.seed,
            task={"name": self.task.name, "hash": self.task.hash},
        )
        entry = {
            "key": key,
            "seconds": seconds,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "summary": dict(summary),
        }
        manifest.setdefault("stages", {})[stage] = entry
        write_json(self.folder / "manifest.json", manifest)


@contextmanager
def _clock(path: Path) -> Iterator[Callable[[], float]]:
    """Gives a function that says the seconds spent on a stage, those of attempts that were killed included."""
    began = time.perf_counter()
    with suppress(OSError, ValueError):
        began -= float(path.read_text())

    def spent() -> float:
        return time.perf_counter() - began

    def write() -> None:
        with suppress(OSError):  # a full disk is the stage's to tell
            write_text(path, f"{spent()}")

    with every(_CLOCK_SECONDS, write):
        yield spent
    path.unlink(missing_ok=True)


def open_folder(recipe: Recipe) -> Callable[[], None]:
    """Makes the run folder, takes its lock, writes the recipe; gives a function that frees the lock.

    Raises UserError where another process works on the folder, where it holds another task's run, or cannot be written.
    """
    try:
        recipe.folder.mkdir(parents=True, exist_ok=True)
        lock = (recipe.folder / "lock").open("a+")
    except OSError as error:
        raise _unwritable(recipe.folder, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        other = lock.read().strip() or "unknown"
        lock.close()
        raise UserError(
            f"{recipe.folder} is in use by process {other}", "wait for it, or give another folder with --folder"
        ) from None
    try:
        _check_same_task(recipe)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        write_text(recipe.folder / "recipe.yaml", recipe.text)
    except OSError as error:
        with suppress(OSError):  # what could not be flushed
            lock.close()
        raise _unwritable(recipe.folder, error) from error
    except UserError:
        lock.close()
        raise
    return lock.close


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {folder}: {error.strerror or error}", "give another folder with --folder")


def _check_same_task(recipe: Recipe) -> None:
    """Two tasks may have folders of one name, and so runs of one name: neither may take the other's place."""
    path = recipe.folder / "recipe.yaml"
    known = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    other = Path(str(known["task"])) if isinstance(known, dict) and "task" in known else recipe.task
    if other.is_dir() and other.resolve() != recipe.task.resolve():
        problem = f"{recipe.folder} holds the run of another task, {other}"
        raise UserError(problem, "give another folder with --folder, or remove that one")


def package_versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
