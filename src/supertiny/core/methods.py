"""A method is a file: its folder is its family, its file name is its name, its public class holds its settings.

Nothing is registered by hand. Names and docstrings are read from the source without importing it, so that listings
stay fast; a method's module is imported when the method is used.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from supertiny.core.errors import UserError, UserErrors, nearest_word

PACKAGE = Path(__file__).parents[1]
# A family is a folder of method files; its place in the tree is the room that uses it.
FAMILIES: Mapping[str, str] = {
    "engines": "engines",
    "formats": "formats",
    "learners": "training/learners",
    "divergences": "training/divergences",
    "steps": "prototype/steps",
    "curators": "prototype/curators",
    "reshapers": "compress/reshapers",
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
        """Imports the file and gives its class."""
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


def find(family: str, name: str) -> Card:
    """The card of a method. Raises UserError with the nearest name."""
    known = cards(family)
    if name not in known:
        raise UserError(f"{family} has no method {name!r}", nearest_word(name, known))
    return known[name]


def build(family: str, block: Any, place: str = "") -> Any:
    """A method object from a recipe's block: a name, or a mapping with `method` and its settings.

    Raises UserErrors with every mistake of the block and its place.
    """
    place = place or family
    if isinstance(block, str):
        block = {"method": block}
    if not isinstance(block, Mapping) or not isinstance(block.get("method"), str):
        raise UserError(f"{place}: needs a method's name, or {{method: NAME, ...}}; found {block!r}")
    try:
        card = find(family, block["method"])
    except UserError as error:
        raise UserError(f"{place}: {error.problem}", error.hint) from None
    settings = {key: value for key, value in block.items() if key != "method"}
    return validated(card.load(), settings, f"{place}.{card.name}")


def validated(schema: type[Any], settings: Mapping[str, Any], place: str) -> Any:
    """An object of a frozen dataclass from plain values; unknown keys and wrong types are all named at once."""
    if not is_dataclass(schema):
        raise TypeError(f"{schema} must be a frozen dataclass")
    known = {field.name for field in fields(schema)}
    errors = [
        UserError(f"{place}: there is no setting {key!r}", nearest_word(str(key), known or {"(none)"}))
        for key in settings
        if key not in known
    ]
    try:
        built = TypeAdapter(schema).validate_python({k: v for k, v in settings.items() if k in known})
    except ValidationError as error:
        for mistake in error.errors():
            where = ".".join(str(part) for part in mistake["loc"])
            errors.append(UserError(f"{place}.{where}: {mistake['msg']}; found {mistake['input']!r}"))
        errors += _method_mistakes(schema, settings, place)
    else:
        errors += _method_mistakes(schema, vars(built), place)
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    return built


def _method_mistakes(schema: type[Any], values: Mapping[str, Any], place: str) -> list[UserError]:
    """Mistakes in settings that name methods: fields whose metadata says `family` ("a|b" where two fit).

    Where the metadata says `lacks`, methods that need one of these words are mistakes too.
    """
    errors: list[UserError] = []
    for field in fields(schema):
        families = field.metadata.get("family")
        value = values.get(field.name)
        if not families or value is None:
            continue
        blocks = value if isinstance(value, list | tuple) else [value]
        for number, block in enumerate(blocks):
            spot = f"{place}.{field.name}" + (f".{number}" if blocks is value else "")
            try:
                method = build(_family_of(block, families), block, spot)
                for need in set(getattr(method, "needs", ())) & set(field.metadata.get("lacks", ())):
                    errors.append(UserError(f"{spot}: needs {need}, which is not there", "choose another method"))
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
