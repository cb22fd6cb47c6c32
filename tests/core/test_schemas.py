"""References are written out, or told with their path; types get JSON Schema's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.records import Call, Tool
from supertiny.core.schemas import with_known_types, without_references
from supertiny.core.scoring import plain_call, plain_value, typed
from supertiny.core.task import load_task
from supertiny.core.verifying import check_schema, schema_problem
from supertiny.formats.compact import Compact
from tests.small_task import write_task

PLACE = {"type": "object", "properties": {"area": {"$ref": "#/$defs/Area"}}, "required": ["area"]}
SCHEMA: dict[str, Any] = {
    "$defs": {"Area": {"type": "string", "enum": ["hall", "attic"]}, "Place": PLACE, "Level": {"type": "integer"}},
    "type": "object",
    "properties": {
        "place": {"$ref": "#/$defs/Place"},
        "levels": {"type": "array", "items": {"$ref": "#/$defs/Level"}},
        "other": {"allOf": [{"$ref": "#/$defs/Area"}], "description": "where else", "default": {"$ref": "no schema"}},
        "maybe": {"anyOf": [{"$ref": "#/$defs/Level"}, {"type": "null"}]},
        "$ref": {"type": "string"},
        "default": {"$ref": "#/$defs/Level"},
    },
    "required": ["place"],
    "additionalProperties": False,
}


def test_references_are_written_out() -> None:
    whole = without_references(SCHEMA, "x")
    area = {"type": "string", "enum": ["hall", "attic"]}
    assert whole == {
        "type": "object",
        "properties": {
            "place": {"type": "object", "properties": {"area": area}, "required": ["area"]},
            "levels": {"type": "array", "items": {"type": "integer"}},
            "other": {**area, "description": "where else", "default": {"$ref": "no schema"}},
            "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "$ref": {"type": "string"},
            "default": {"type": "integer"},
        },
        "required": ["place"],
        "additionalProperties": False,
    }
    plain = {"type": "object", "properties": {"a": {"allOf": [{"type": "string"}]}}}
    assert without_references(plain, "x") is plain


def test_what_stands_beside_a_reference_holds_too() -> None:
    schema = {
        "properties": {"a": {"$ref": "#/definitions/a~1b%25", "description": "own", "maximum": 3}},
        "definitions": {"a/b%": {"type": "integer", "description": "theirs", "maximum": 9}},
    }
    (whole,) = without_references(schema, "x")["properties"].values()
    assert whole == {"description": "own", "maximum": 3, "allOf": [schema["definitions"]["a/b%"]]}
    schema["properties"]["a"].pop("maximum")
    (whole,) = without_references(schema, "x")["properties"].values()
    assert whole == {"type": "integer", "description": "own", "maximum": 9}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (
            {"properties": {"a": {"$ref": "#"}}},
            "$.properties.a.properties.a.$ref is recursive: # -> #; write the levels out",
        ),
        (
            {"properties": {"n": {"$ref": "#/$defs/N"}}, "$defs": {"N": {"items": {"$ref": "#/$defs/N"}}}},
            "$.properties.n.items.$ref is recursive: #/$defs/N -> #/$defs/N",
        ),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/A"}},
                "$defs": {"A": {"not": {"$ref": "#/$defs/B"}}, "B": {"items": {"$ref": "#/$defs/A"}}},
            },
            "#/$defs/A -> #/$defs/B -> #/$defs/A",
        ),
        ({"properties": {"a": {"$ref": "#/$defs/Aera"}}}, "$.properties.a.$ref points nowhere: '#/$defs/Aera'"),
        ({"anyOf": [{"$ref": "http://else.where/schema"}]}, "$.anyOf.0.$ref points out of the schema"),
        ({"items": {"$ref": "#named"}}, "$.items.$ref points at an anchor"),
    ],
)
def test_what_cannot_be_written_out_is_told_with_its_path(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as told:
        without_references(schema, "parameters of 'f'")
    assert str(told.value).startswith("parameters of 'f': $")
    assert words in str(told.value)


def test_references_that_double_at_every_level_are_refused() -> None:
    levels = {f"L{n}": {"anyOf": [{"$ref": f"#/$defs/L{n + 1}"}] * 2} for n in range(40)}
    with pytest.raises(ValueError, match="more than 20000 parts"):
        without_references({"items": {"$ref": "#/$defs/L0"}, "$defs": {**levels, "L40": {}}}, "x")


def test_a_tool_with_references_works_everywhere() -> None:
    tool = Tool.from_openai({"name": "go", "parameters": SCHEMA})
    assert check_schema(tool) == ""
    right = Call("go", {"place": {"area": "hall"}, "levels": [1, 2]})
    assert schema_problem(right, {"go": tool}) == ""
    assert "'hal' is not allowed; did you mean 'hall'" in schema_problem(
        Call("go", {"place": {"area": "hal"}}), {"go": tool}
    )
    assert plain_value({"levels": ["3", 4.0]}, tool.parameters) == {"levels": [3, 4]}
    grammar = Compact().grammar([tool]).text
    assert '"[" (json-integer (", " json-integer)*)? "]"' in grammar
    assert '"hall"' in grammar


def test_values_of_either_kind_are_typed_and_compared() -> None:
    """Optional arguments come as `anyOf` a type and null; a bare 12345 is text where only text is wanted."""
    either = {"anyOf": [{"$ref": "#/$defs/Code"}, {"type": "null"}]}
    number = {"oneOf": [{"type": "null"}, {"type": "number"}]}
    inner = {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"n": number}}]}
    schema = {
        "type": "object",
        "properties": {"code": either, "codes": {"type": "array", "items": either}, "inner": inner},
        "$defs": {"Code": {"type": "string"}},
    }
    tools = {"f": Tool.from_openai({"name": "f", "parameters": schema})}
    read = Compact().decode('f code 12345; codes [7, null, "x"]; inner {"n": 2.0}')
    (call,) = typed(read, tools).calls
    assert call.arguments == {"code": "12345", "codes": ["7", None, "x"], "inner": {"n": 2.0}}
    assert schema_problem(call, tools) == ""
    assert plain_call(Call("f", {"inner": {"n": "2"}}), tools) == plain_call(Call("f", {"inner": {"n": 2.0}}), tools)


def test_a_task_tells_recursive_tools_with_their_place(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task")
    tools = json.loads((folder / "tools.json").read_text(encoding="utf-8"))
    area = tools[0]["function"]["parameters"]["properties"]["area"]
    for tool in tools:
        tool["function"]["parameters"] |= {"properties": {"area": {"$ref": "#/$defs/a"}}, "$defs": {"a": area}}
    tools[2]["function"]["parameters"]["properties"]["level"] = {"type": "integer"}
    (folder / "tools.json").write_text(json.dumps(tools), encoding="utf-8")
    assert load_task(folder).tools[0].parameters["properties"] == {"area": area}
    tools[1]["function"]["parameters"]["properties"]["more"] = {"$ref": "#"}
    (folder / "tools.json").write_text(json.dumps(tools), encoding="utf-8")
    with pytest.raises(UserError) as told:
        load_task(folder)
    line = next(line for line in str(told.value).split("; ") if "recursive" in line)
    assert "tools.json: tool 2: parameters of 'TurnOff': $.properties.more" in line


def test_a_rows_own_tools_are_checked(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task")
    loop = {"type": "object", "properties": {"a": {"$ref": "#"}}}
    for number, parameters in enumerate((loop, {"type": "dict"})):
        row = {"text": f"row {number}", "calls": [], "tools": [{"name": "f", "parameters": parameters}]}
        with (folder / "labelled.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
    with pytest.raises(UserErrors) as told:
        load_task(folder)
    first, second = (str(error) for error in told.value.errors)
    assert "labelled.jsonl:25: " in first
    assert "$.properties.a.properties.a.$ref is recursive" in first
    assert "labelled.jsonl:26: parameters of 'f' are no JSON Schema" in second


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
    made = Tool.from_openai(with_known_types(tool))
    assert made.parameters == {"type": "object", "properties": {"a": {**schema, "description": "x"}}}
    assert check_schema(made) == ""


def test_properties_alone_become_an_object() -> None:
    own = {"type": {"type": "str", "default": "noun"}, "count": {"type": "int"}, "page": {"type": "int, optional"}}
    made = Tool.from_openai(with_known_types({"type": "function", "function": {"name": "f", "parameters": own}}))
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
    assert with_known_types({"name": "f", "parameters": right})["parameters"] == right
    assert with_known_types({"name": "f"}) == {"name": "f"}
