"""JSON Schemas as people bring them: references written out, types in JSON Schema's own words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # maps of name to schema
_DATA = ("enum", "const", "default", "examples")  # values, in which "$ref" is a word as any other
_DEFINITIONS = ("$defs", "definitions")
_NOTES = ("title", "description", "default", "examples", "deprecated", "$comment")
_MOST_PARTS = 20_000  # references to references may double at every level

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_WORDS = {
    "dict": "object",
    "map": "object",
    "hashmap": "object",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "str": "string",
    "char": "string",
    "float": "number",
    "double": "number",
    "int": "integer",
    "long": "integer",
    "bool": "boolean",
    "none": "null",
}
_OPTIONAL = re.compile(r"\s*,\s*optional$", re.IGNORECASE)


def without_references(schema: Mapping[str, Any], whose: str) -> Mapping[str, Any]:
    """The schema with every local `$ref` replaced by what it points at; the very same object where it has none.

    What stands beside a `$ref` holds too. Raises ValueError, with the path, where a reference leads into itself,
    nowhere, or out of the schema; `whose` names the schema.
    """
    if not _has_reference(schema):
        return schema
    whole: Mapping[str, Any] = _Writer(schema, whose).write(schema, "$", ())
    return whole


def with_known_types(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool in OpenAI's format whose types are those of JSON Schema; a type that cannot be told is left out.

    `dict`, `str`, `List[int]` and `float, optional` are read, as function-calling data sets have them; parameters that
    are properties alone become an object's.
    """
    function = tool.get("function", tool)
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        return tool
    if "properties" not in parameters and all(isinstance(p, Mapping) and "type" in p for p in parameters.values()):
        needed = [name for name, part in parameters.items() if not _is_optional(part)]
        parameters = {"type": "object", "properties": parameters, "required": needed}
    return {**function, "parameters": _typed(parameters)}


def _rebuilt(schema: Mapping[str, Any], write: Callable[[Any, str], Any]) -> dict[str, Any]:
    """The schema with `write` applied to every schema in it, given with its path; values stay as they are."""
    written: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _DATA:
            written[key] = value
        elif key in _NAMED and isinstance(value, Mapping):
            written[key] = {name: write(part, f"{key}.{name}") for name, part in value.items()}
        elif isinstance(value, list):
            written[key] = [write(part, f"{key}.{number}") for number, part in enumerate(value)]
        else:
            written[key] = write(value, key)
    return written


def _has_reference(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("$ref"), str) or any(map(_has_reference, value.values()))
    return isinstance(value, list) and any(map(_has_reference, value))


class _Writer:
    def __init__(self, root: Mapping[str, Any], whose: str) -> None:
        self._root = root
        self._whose = whose
        self._parts = 0

    def write(self, schema: Any, place: str, inside: tuple[str, ...]) -> Any:
        """What is no mapping stands as it is; `inside` are the references that lead here."""
        if not isinstance(schema, Mapping):
            return schema
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise self._error(place, f"has more than {_MOST_PARTS} parts when its references are written out")
        schema = _unwrapped(schema)
        target = schema.get("$ref")
        left_out = (*_DEFINITIONS, "$ref") if isinstance(target, str) else _DEFINITIONS
        rest = {key: value for key, value in schema.items() if key not in left_out}
        own = _rebuilt(rest, lambda part, at: self.write(part, f"{place}.{at}", inside))
        if not isinstance(target, str):
            return own
        spot = f"{place}.$ref"
        if target in inside:
            chain = " -> ".join((*inside[inside.index(target) :], target))
            raise self._error(spot, f"is recursive: {chain}; write the levels out that your calls have")
        return _joined(self.write(self._find(target, spot), place, (*inside, target)), own)

    def _find(self, target: str, place: str) -> Any:
        """What a local reference, `#` or `#/a/b`, points at."""
        if not target.startswith("#"):
            raise self._error(place, f"points out of the schema: {target!r}; put what it names under $defs")
        pointer = unquote(target[1:])
        if pointer and not pointer.startswith("/"):
            raise self._error(place, f"points at an anchor: {target!r}; write it as #/$defs/NAME")
        found: Any = self._root
        for word in pointer.split("/")[1:]:
            word = word.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and word in found:
                found = found[word]
            elif isinstance(found, list) and word.isdecimal() and int(word) < len(found):
                found = found[int(word)]
            else:
                raise self._error(place, f"points nowhere: {target!r}")
        return found

    def _error(self, place: str, problem: str) -> ValueError:
        return ValueError(f"{self._whose}: {place} {problem}")


def _unwrapped(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """An `allOf` of one reference, which is how older programs put a description beside it, as the reference."""
    parts = schema.get("allOf")
    if not isinstance(parts, list) or len(parts) != 1 or not isinstance(parts[0], Mapping) or "$ref" not in parts[0]:
        return schema
    return {**parts[0], **{key: value for key, value in schema.items() if key != "allOf"}}


def _joined(found: Any, own: Mapping[str, Any]) -> Any:
    """What a reference points at and what stands beside it; where both say the same key, both hold."""
    if not own or not isinstance(found, Mapping):
        return found if found is not True else own
    if all(key in _NOTES or key not in found or found[key] == own[key] for key in own):
        return {**found, **own}
    return {**own, "allOf": [found, *own.get("allOf", ())]}


def _is_optional(schema: Mapping[str, Any]) -> bool:
    kind = str(schema["type"])
    return "default" in schema or bool(_OPTIONAL.search(kind)) or kind.lower().startswith("optional[")


def _typed(schema: Any, _: str = "") -> Any:
    if not isinstance(schema, Mapping):
        return schema
    written = _rebuilt(schema, _typed)
    kind = written.pop("type", None)
    return (_type(kind) if isinstance(kind, str) else {"type": kind} if kind else {}) | written


def _type(name: str) -> dict[str, Any]:
    """A schema of a type's name; empty where the name says nothing that JSON Schema knows."""
    found = re.fullmatch(r"(\w+)(?:\[(.*)\])?", _OPTIONAL.sub("", name.strip()))
    word, inner = (found.group(1).lower(), found.group(2)) if found else ("", None)
    if word == "optional" and inner:
        return _type(inner)
    kind = _WORDS.get(word, word)
    if kind not in _TYPES:
        return {}
    items = _type(inner) if kind == "array" and inner and "," not in inner else {}
    return {"type": kind, "items": items} if items else {"type": kind}
