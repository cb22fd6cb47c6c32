"""Type names of programming languages become JSON Schema's."""

from __future__ import annotations

from typing import Any

import pytest

from supertiny.core.records import Tool
from supertiny.core.type_names import schema_words
from supertiny.core.verifying import check_schema


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("str", {"type": "string"}),
        ("float, optional", {"type": "number"}),
        ("Optional[int]", {"type": "integer"}),
        ("List[str]", {"type": "array", "items": {"type": "string"}}),
        ("List[List[float]]", {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
        ("Dict[str, int]", {"type": "object"}),
        ("Tuple[int, str]", {"type": "array"}),
        ("boolean", {"type": "boolean"}),
        ("any", {}),
        ("Callable", {}),
        (["string", "null"], {"type": ["string", "null"]}),
    ],
)
def test_names_of_types(name: Any, schema: dict[str, Any]) -> None:
    tool = {"name": "f", "parameters": {"type": "dict", "properties": {"a": {"type": name, "description": "x"}}}}
    made = Tool.from_openai(schema_words(tool))
    assert made.parameters == {"type": "object", "properties": {"a": {**schema, "description": "x"}}}
    assert check_schema(made) == ""


def test_properties_alone_become_an_object() -> None:
    own = {"type": {"type": "str", "default": "noun"}, "count": {"type": "int"}, "page": {"type": "int, optional"}}
    made = Tool.from_openai(schema_words({"type": "function", "function": {"name": "f", "parameters": own}}))
    assert made.parameters == {
        "type": "object",
        "properties": {
            "type": {"type": "string", "default": "noun"},
            "count": {"type": "integer"},
            "page": {"type": "integer"},
        },
        "required": ["count"],
    }


def test_right_schemas_stay_as_they_are() -> None:
    right = {
        "type": "object",
        "properties": {"type": {"type": "string"}, "a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/b"}]}},
        "$defs": {"b": {"type": "array", "items": {"type": "number"}}},
        "additionalProperties": False,
    }
    assert schema_words({"name": "f", "parameters": right})["parameters"] == right
    assert schema_words({"name": "f"}) == {"name": "f"}
