"""References of a JSON Schema written out: whoever reads a tool's parameters finds them whole, without `$ref`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from supertiny.core.errors import UserError

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # maps of name to schema
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
_DATA = ("enum", "const", "default", "examples")  # values, in which "$ref" is a word as any other
_DYNAMIC = ("$dynamicRef", "$recursiveRef")
_NOTES = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"})
_MOST_PARTS = 20_000  # references to references may double at every level


class SchemaReferenceError(UserError, ValueError):
    """A reference that cannot be written out; a row's reader takes it for a broken row, and tells its place."""


def without_references(schema: Mapping[str, Any], whose: str) -> Mapping[str, Any]:
    """The schema with every local `$ref` replaced by what it points at; the very same object where it has none.

    What stands beside a `$ref` is kept. An `allOf` of one part that was a reference is taken for that part.
    Raises SchemaReferenceError, with the path, where a reference leads into itself, nowhere, or out of the schema;
    `whose` names the schema.
    """
    if not isinstance(schema, Mapping) or not _has_reference(schema):
        return schema
    written: Mapping[str, Any] = _Writer(schema, whose).write(schema, "$", ())
    return {key: value for key, value in written.items() if key not in ("$defs", "definitions")}


def _has_reference(value: Any) -> bool:
    if isinstance(value, Mapping):
        found = any(isinstance(value.get(key), str) for key in ("$ref", *_DYNAMIC))
        return found or any(_has_reference(part) for key, part in value.items() if key not in _DATA)
    return isinstance(value, list) and any(_has_reference(part) for part in value)


class _Writer:
    def __init__(self, root: Mapping[str, Any], whose: str) -> None:
        self._root = root
        self._whose = whose
        self._parts = 0

    def write(self, schema: Any, place: str, inside: tuple[str, ...]) -> Any:
        """A schema, which may be `true` or `false` too; `inside` are the references that lead here."""
        if not isinstance(schema, Mapping):
            return schema
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise self._error(place, f"has more than {_MOST_PARTS} parts when its references are written out")
        for key in _DYNAMIC:
            if isinstance(schema.get(key), str):
                raise self._error(f"{place}.{key}", "depends on who refers to it, which cannot be written out")
        target = schema.get("$ref")
        if not isinstance(target, str):
            return self._inner(schema, place, inside)
        spot = f"{place}.$ref"
        if target in inside:
            chain = " -> ".join((*inside[inside.index(target) :], target))
            raise self._error(
                spot, f"is recursive: {chain}", "write the depth out that your calls have, level by level"
            )
        found = self.write(self._find(target, spot), place, (*inside, target))
        own = self._inner({key: value for key, value in schema.items() if key != "$ref"}, place, inside)
        return _joined(found, own)

    def _inner(self, schema: Mapping[str, Any], place: str, inside: tuple[str, ...]) -> Any:
        written: dict[str, Any] = {}
        for key, value in schema.items():
            if key in ("$defs", "definitions"):
                continue  # written out where they are used
            spot = f"{place}.{key}"
            if key in _NAMED and isinstance(value, Mapping):
                written[key] = {name: self.write(part, f"{spot}.{name}", inside) for name, part in value.items()}
            elif key in _LISTED and isinstance(value, list):
                written[key] = [self.write(part, f"{spot}.{number}", inside) for number, part in enumerate(value)]
            elif key in _DATA:
                written[key] = value
            else:  # items, additionalProperties, not, if, contains, ...: a schema where it is a mapping
                written[key] = self.write(value, spot, inside)
        parts = schema.get("allOf")
        if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], Mapping) and "$ref" in parts[0]:
            (only,) = written.pop("allOf")
            return _joined(only, written)
        return written

    def _find(self, target: str, place: str) -> Any:
        """What a local reference, `#` or `#/a/b`, points at."""
        if not target.startswith("#"):
            raise self._error(place, f"points out of the schema: {target!r}", "put what it names under $defs")
        pointer = unquote(target[1:])
        if pointer and not pointer.startswith("/"):
            raise self._error(place, f"points at an anchor: {target!r}", "write it as #/$defs/NAME")
        found: Any = self._root
        for word in pointer.split("/")[1:]:
            word = word.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and word in found:
                found = found[word]
            elif isinstance(found, Sequence) and not isinstance(found, str) and _is_place(word, found):
                found = found[int(word)]
            else:
                raise self._error(place, f"points nowhere: {target!r}")
        return found

    def _error(self, place: str, problem: str, hint: str = "") -> SchemaReferenceError:
        return SchemaReferenceError(f"{self._whose}: {place} {problem}", hint)


def _is_place(word: str, values: Sequence[Any]) -> bool:
    return word.isdecimal() and int(word) < len(values)


def _joined(found: Any, own: Mapping[str, Any]) -> Any:
    """What a reference points at and what stands beside it; where both say the same key, both hold."""
    if not own:
        return found
    if not isinstance(found, Mapping):
        return own if found is True else found
    if all(key in _NOTES or key not in found or found[key] == own[key] for key in own):
        return {**found, **own}
    return {**{key: value for key, value in own.items() if key != "allOf"}, "allOf": [found, *own.get("allOf", ())]}
