"""A recipe: what to do, in YAML, read with a safe loader; all its mistakes are reported in one reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from supertiny.core.errors import UserError, UserErrors, nearest_word

STAGES = ("prototype", "transfer", "compress", "serve", "report")
SEARCH = "optimise"  # a section that no stage reads: what `supertiny optimise` tries
_TEXT_KEYS = ("name", "task", "folder")  # an override of these is text, also where YAML would read a date or a number
_PLAIN_KEYS = {"name": str, "task": str, "seed": int, "folder": str}


@dataclass(frozen=True)
class Recipe:
    """A recipe as it is run: overrides applied, stage sections still plain values."""

    name: str
    task: Path
    """Folder of the task."""
    folder: Path
    """Where the run's results go."""
    seed: int = 0
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The recipe as YAML, overrides included."""
        head = {"name": self.name, "task": str(self.task), "folder": str(self.folder), "seed": self.seed}
        return yaml.safe_dump({**head, **_plain(self.sections)}, sort_keys=False, allow_unicode=True)


def read_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    sections_errors: Callable[[Mapping[str, Any], Path | None], Sequence[UserError]] = lambda sections, task: (),
) -> Recipe:
    """Reads a recipe and applies `a.b=value` overrides.

    A relative `task` is looked for in the working folder first, then beside the recipe. Overridden with another task,
    the recipe's `name` and `folder` no longer hold: the run is named after the task's folder, unless an override names
    it. Raises UserErrors with all mistakes of the top level, and where there are any with those that `sections_errors`
    finds inside the sections too.
    """
    values = _read_yaml(path)
    own = dict(values)
    errors = _overridden(values, overrides)
    known = [*_PLAIN_KEYS, *STAGES, SEARCH]
    errors += [
        UserError(f"{path}: there is no section {key!r}", nearest_word(str(key), known))
        for key in values
        if key not in known
    ]
    for key, kind in _PLAIN_KEYS.items():
        if key in values and not isinstance(values[key], kind):
            errors.append(UserError(f"{path}: {key} must be {kind.__name__}; found {values[key]!r}"))
    for stage in (*STAGES, SEARCH):
        if not isinstance(values.get(stage) or {}, Mapping):
            errors.append(UserError(f"{path}: {stage} must be a mapping of settings; found {values[stage]!r}"))
    if "task" not in values:
        errors.append(UserError(f"{path}: needs `task`, the folder of a task"))
    task = None
    if isinstance(values.get("task"), str):
        task = _find_task(path, values["task"], errors)
    if errors or task is None:
        sections = {stage: values[stage] for stage in STAGES if isinstance(values.get(stage), Mapping)}
        raise UserErrors([*errors, *sections_errors(sections, task)])
    if _is_other_task(path, own.get("task"), task):
        given = {override.partition("=")[0] for override in overrides}
        fitting = {"name": task.resolve().name, "folder": None}
        values |= {key: value for key, value in fitting.items() if key not in given}
    name = values.get("name") or (path.parent.name if path.stem == "recipe" else path.stem)
    return Recipe(
        name=name,
        task=task,
        folder=Path(values.get("folder") or f"runs/{name}"),
        seed=values.get("seed", 0),
        sections={stage: values.get(stage) or {} for stage in (*STAGES, *([SEARCH] if values.get(SEARCH) else []))},
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "give the path of a recipe, or of a folder that holds recipe.yaml: a run, or a task such as "
        raise UserError(f"{path} is not there", f"{hint}examples/smart_home") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping; found {type(values).__name__}")
    return values


def _overridden(values: dict[str, Any], overrides: Sequence[str]) -> list[UserError]:
    """Applies the overrides; gives the mistakes of those that cannot be."""
    errors = []
    for override in overrides:
        try:
            _override(values, override)
        except UserError as error:
            errors.append(error)
    return errors


def _override(values: dict[str, Any], override: str) -> None:
    place, sign, text = override.partition("=")
    if not sign or not place:
        raise UserError(f"override {override!r} is not of the form a.b=value")
    try:
        value = text if place in _TEXT_KEYS else yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: the value is not YAML") from None
    *parents, last = place.split(".")
    spot: Any = values
    for parent in parents:
        if isinstance(spot, list):
            spot = spot[_index(parent, spot, override)]
        else:
            if isinstance(spot.get(parent), str) and parent != "task":
                spot[parent] = {"method": spot[parent]}  # a method by name gets its first setting
            if spot.get(parent) is None:  # a section that is empty, or not there
                spot[parent] = {}
            spot = spot[parent]
        if not isinstance(spot, dict | list):
            raise UserError(f"override {override!r}: {parent} holds {spot!r}, which has no settings")
    if isinstance(spot, list):
        spot[_index(last, spot, override)] = value
    else:
        spot[last] = value


def _index(text: str, values: list[Any], override: str) -> int:
    if not text.isdecimal() or int(text) >= len(values):
        raise UserError(f"override {override!r}: {text} is not one of the places 0 to {len(values) - 1}")
    if isinstance(values[int(text)], str):
        values[int(text)] = {"method": values[int(text)]}
    return int(text)


def _find_task(recipe: Path, task: str, errors: list[UserError]) -> Path | None:
    beside, here = (recipe.parent / task), Path(task)
    for folder in (here, beside):
        if folder.is_dir():
            return folder
    hint = f"looked in {Path.cwd()} and {recipe.parent}"
    errors.append(UserError(f"{recipe}: task folder {task!r} is not there", hint))
    return None


def _is_other_task(recipe: Path, own: Any, task: Path) -> bool:
    """Whether the task is another than the one that the recipe's file names."""
    known = _find_task(recipe, own, []) if isinstance(own, str) else None
    return known is None or known.resolve() != task.resolve()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
