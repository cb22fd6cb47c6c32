"""A method is a file: its folder is its family, its file name is its name, its public class holds its settings.

Nothing is registered by hand. Names and docstrings are read from the source without importing it, so that listings
stay fast; a method's module is imported when the method is used.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from supertiny.core.errors import UserError, UserErrors, nearest_word
from supertiny.core.files import hash_of

PACKAGE = Path(__file__).parents[1]
# A family is a folder of method files; its place in the tree is the room that uses it.
FAMILIES: Mapping[str, str] = {
    "engines": "engines",
    "formats": "formats",
    "learners": "training/learners",
    "divergences": "training/divergences",
    "rewards": "training/rewards",
    "adapters": "training/adapters",
    "steps": "prototype/steps",
    "selectors": "prototype/selectors",
    "curators": "prototype/curators",
    "reshapers": "compress/reshapers",
    "pruners": "compress/pruners",
    "quantizers": "compress/quantizers",
    "exporters": "compress/exporters",
    "routers": "serve/routers",
}
# Files of a family's folder that hold no method: shared parts of the room. They start with an underscore.


@dataclass(frozen=True)
class Card:
    """What a listing shows of a method, read from its file."""

    family: str
    name: str
    path: Path
    doc: str
    class_name: str

    @property
    def summary(self) -> str:
        return self.doc.strip().splitlines()[0] if self.doc else ""

    def load(self) -> type[Any]:
        """Imports the file and gives its class. Raises UserError where a task's own file is no method."""
        if not self.path.is_relative_to(PACKAGE):
            return _load_own(self)
        module = ".".join(self.path.relative_to(PACKAGE.parent).with_suffix("").parts)
        loaded: type[Any] = getattr(importlib.import_module(module), self.class_name)
        return loaded


@cache
def cards(family: str) -> dict[str, Card]:
    """All methods of a family by name, in alphabetical order."""
    if family not in FAMILIES:
        raise UserError(f"there is no family {family!r}", nearest_word(family, FAMILIES))
    found = {}
    for path in sorted((PACKAGE / FAMILIES[family]).glob("*.py")):
        if path.stem.startswith("_"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = [n.name for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        if len(public) != 1:
            raise TypeError(f"{path} must have one public class and has {public}")
        found[path.stem] = Card(family, path.stem, path, ast.get_docstring(tree) or "", public[0])
    return found


Own = Mapping[str, Mapping[str, Card]]  # methods that a task brings along, by family and name


def own_methods(family: str, folder: Path) -> dict[str, dict[str, Card]]:
    """The methods of a family that stand as files in a task's folder; they are read here, and run when they are used.

    Raises UserErrors where a file is no method, or has the name of a method that is there already.
    """
    found: dict[str, Card] = {}
    errors: list[UserError] = []
    for path in sorted(folder.glob("*.py")) if folder.is_dir() else ():
        if path.stem.startswith("_"):
            continue
        try:
            found[path.stem] = _own_card(family, path)
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    return {family: found} if found else {}


def _own_card(family: str, path: Path) -> Card:
    if path.stem in cards(family):
        raise UserError(f"{path}: {family} has a method {path.stem!r} already", "give the file another name")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Python: {error}") from None
    public = [n.name for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    if len(public) != 1:
        raise UserError(f"{path} must have one public class; found {', '.join(public) or 'none'}", _OWN_HINT)
    return Card(family, path.stem, path.resolve(), ast.get_docstring(tree) or "", public[0])


_OWN_HINT = "a step is one frozen dataclass with calls_per_request and run(traces, bench)"


def _load_own(card: Card) -> type[Any]:
    """Runs code of the task's author: open only tasks whose files you would run by hand."""
    name = f"task_{hash_of(str(card.path))}.{card.name}"
    spec = importlib.util.spec_from_file_location(name, card.path)
    if spec is None or spec.loader is None:
        raise UserError(f"{card.path} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the types that their annotations name
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the author's code does wrong is told with its place
        del sys.modules[name]
        raise UserError(f"{card.path} cannot be imported: {type(error).__name__}: {error}") from error
    loaded: type[Any] = getattr(module, card.class_name)
    frozen = is_dataclass(loaded) and loaded.__dataclass_params__.frozen  # type: ignore[attr-defined]
    verbs = [verb for verb in ("calls_per_request", "run") if not hasattr(loaded, verb)]
    if not frozen or verbs:
        lacking = "is not a frozen dataclass" if not frozen else f"has no {' and no '.join(verbs)}"
        raise UserError(f"{card.path}: {card.class_name} {lacking}", _OWN_HINT)
    return loaded


def find(family: str, name: str, own: Own | None = None) -> Card:
    """The card of a method. Raises UserError with the nearest name."""
    known = {**cards(family), **(own or {}).get(family, {})}
    if name not in known:
        raise UserError(f"{family} has no method {name!r}", nearest_word(name, known))
    return known[name]


def build(family: str, block: Any, place: str = "", own: Own | None = None) -> Any:
    """A method object from a recipe's block: a name, or a mapping with `method` and its settings.

    `own` are methods that the task brings along. Raises UserErrors with every mistake of the block and its place.
    """
    place = place or family
    if isinstance(block, str):
        block = {"method": block}
    if not isinstance(block, Mapping) or not isinstance(block.get("method"), str):
        raise UserError(f"{place}: needs a method's name, or {{method: NAME, ...}}; found {block!r}")
    try:
        card = find(family, block["method"], own)
    except UserError as error:
        raise UserError(f"{place}: {error.problem}", error.hint) from None
    settings = {key: value for key, value in block.items() if key != "method"}
    return validated(card.load(), settings, f"{place}.{card.name}", own)


def validated(schema: type[Any], settings: Mapping[str, Any], place: str, own: Own | None = None) -> Any:
    """An object of a frozen dataclass from plain values; unknown keys and wrong types are all named at once."""
    if not is_dataclass(schema):
        raise TypeError(f"{schema} must be a frozen dataclass")
    errors = _unknown(schema, settings, place)
    known = {field.name for field in fields(schema)}
    try:
        built = TypeAdapter(schema).validate_python({k: v for k, v in settings.items() if k in known})
    except ValidationError as error:
        for mistake in error.errors():
            errors += _told(mistake, ".".join((place, *map(str, mistake["loc"]))))
        errors += _method_mistakes(schema, settings, place, own)
    else:
        errors += _method_mistakes(schema, vars(built), place, own)
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    return built


def _told(mistake: Mapping[str, Any], place: str) -> list[UserError]:
    """Of a mistake that pydantic found; what our own validators raise, or raise from, says already what was found."""
    raised, found = mistake.get("ctx", {}).get("error"), mistake["input"]
    if isinstance(raised, ValueError):
        cause = raised.__cause__
        if isinstance(cause, UserErrors):
            return cause.errors
        return [cause if isinstance(cause, UserError) else UserError(f"{place}: {raised}")]
    said = mistake["msg"]
    if mistake["type"] in ("tuple_type", "list_type"):
        said = "must be a list" + (f", such as [{found}]" if isinstance(found, str) else "")
    return [UserError(f"{place}: {said}; found {found!r}")]


def _unknown(schema: type[Any], settings: Mapping[str, Any], place: str) -> list[UserError]:
    """Keys that are no setting, also within settings that have settings themselves: a budget misspelt is no budget."""
    kinds, errors = get_type_hints(schema), []
    known = {field.name for field in fields(schema)}
    for key, value in settings.items():
        if key not in known:
            hint = nearest_word(str(key), known or {"(none)"})
            errors.append(UserError(f"{place}: there is no setting {key!r}", hint))
        elif isinstance(value, Mapping):
            parts = (kinds[key], *get_args(kinds[key]))  # of `Budget | None`, what stands in it
            within = [part for part in parts if isinstance(part, type) and is_dataclass(part)]
            errors += [error for kind in within for error in _unknown(kind, value, f"{place}.{key}")]
    return errors


def _method_mistakes(
    schema: type[Any], values: Mapping[str, Any], place: str, own: Own | None = None
) -> list[UserError]:
    """Mistakes in settings that name methods: fields whose metadata says `family` ("a|b" where two fit).

    Where the metadata says `lacks`, words or a function of the values that gives them, methods that need one of these
    are mistakes too; of a need such as "live_teacher|token_scores" one word is enough.
    """
    errors: list[UserError] = []
    for field in fields(schema):
        families = field.metadata.get("family")
        value = values.get(field.name)
        if not families or value is None:
            continue
        blocks = value if isinstance(value, list | tuple) else [value]
        lacks = field.metadata.get("lacks", ())
        absent = set(lacks(values) if callable(lacks) else lacks)
        for number, block in enumerate(blocks):
            spot = f"{place}.{field.name}" + (f".{number}" if blocks is value else "")
            try:
                method = build(_family_of(block, families), block, spot, own)
                for need in getattr(method, "needs", ()):
                    if set(need.split("|")) <= absent:
                        hint = field.metadata.get("hint", "choose another method")
                        errors.append(UserError(f"{spot}: needs {need.replace('|', ' or ')}, which is not there", hint))
            except UserErrors as several:
                errors += several.errors
            except UserError as error:
                errors.append(error)
    return errors


def _family_of(block: Any, families: str) -> str:
    """The family among "a|b" that has the block's method; the last one where none has."""
    name = block.get("method") if isinstance(block, Mapping) else block
    *others, last = families.split("|")
    return next((family for family in others if name in cards(family)), last)
