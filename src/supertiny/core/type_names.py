"""JSON Schema whose types are named as a programming language names them: put into JSON Schema's own words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_WORDS = {
    "dict": "object",
    "map": "object",
    "hashmap": "object",
    "float": "number",
    "double": "number",
    "int": "integer",
    "long": "integer",
    "str": "string",
    "char": "string",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "none": "null",
}
_RIGHT = {"object", "number", "integer", "string", "boolean", "array", "null"}
_OPTIONAL = re.compile(r"\s*,\s*optional\s*$|^Optional\[(.*)\]$")
_INNER = re.compile(r"(\w+)\[(.*)\]")


def schema_words(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool in OpenAI's format whose parameters use JSON Schema's words; what cannot be told stands without a type.

    `dict`, `str`, `List[int]` and `float, optional` are read; parameters that are properties alone become an object's.
    """
    function = tool.get("function", tool)
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        return tool
    if "properties" not in parameters and all(map(_is_schema, parameters.values())):
        given = {name: dict(schema) for name, schema in parameters.items()}
        needed = [name for name, schema in given.items() if not _is_optional(schema)]
        parameters = {"type": "object", "properties": given, "required": needed}
    return {**function, "parameters": _schema(parameters)}


def _is_schema(value: Any) -> bool:
    return isinstance(value, Mapping) and "type" in value


def _is_optional(schema: Mapping[str, Any]) -> bool:
    return "default" in schema or bool(_OPTIONAL.search(str(schema.get("type"))))


def _schema(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    written = {key: value for key, value in schema.items() if key != "type"}
    for key in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(key), Mapping):
            written[key] = {name: _schema(part) for name, part in schema[key].items()}
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            written[key] = [_schema(part) for part in schema[key]]
    if isinstance(schema.get("items"), Mapping):
        written["items"] = _schema(schema["items"])
    kind = schema.get("type")
    return ({"type": kind} if isinstance(kind, list) else _kind(kind)) | written


def _kind(name: Any) -> dict[str, Any]:
    """A schema of a type's name; empty where the name says nothing that JSON Schema knows."""
    if not isinstance(name, str) or name in _RIGHT:
        return {"type": name} if name else {}
    found = _OPTIONAL.search(name)
    plain = (found.group(1) or name[: found.start()]) if found else name
    inner = _INNER.fullmatch(plain.strip())
    word = (inner.group(1) if inner else plain).strip().lower()
    kind = word if word in _RIGHT else _WORDS.get(word)
    if kind == "array" and inner and "," not in inner.group(2):
        items = _kind(inner.group(2))
        return {"type": kind, "items": items} if items else {"type": kind}
    return {"type": kind} if kind else {}
