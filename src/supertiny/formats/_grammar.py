"""Grammars in the EBNF that xgrammar and llama.cpp (GBNF) both read; equal rules are written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from supertiny.formats._text import json_text

# What `json_text` writes: JSON on one line with Python's separators.
_JSON = {
    "json": "json-string | json-number | json-object | json-array | json-boolean | json-null",
    "json-string": r'"\"" json-letter* "\""',
    "json-letter": r'[^"\\\x00-\x1F] | "\\" json-escape',
    "json-escape": r'["\\/bfnrt] | "u" json-hex json-hex json-hex json-hex',
    "json-hex": "[0-9a-fA-F]",
    "json-integer": '"-"? ("0" | [1-9] [0-9]*) (".0")?',
    "json-number": '"-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [+-]? [0-9]+)?',
    "json-object": '"{" (json-pair (", " json-pair)*)? "}"',
    "json-pair": 'json-string ": " json',
    "json-boolean": '"true" | "false"',
    "json-null": '"null"',
    "json-array": '"[" (json (", " json)*)? "]"',
}
# What `prose` writes; the callers' reserved beginnings are let through, which only widens the grammar.
_PROSE = {
    "prose": r"json-string | prose-first prose-letter*",
    "prose-first": r'[^\x00-\x20"]',
    "prose-letter": r"[^\x00-\x08\x0B-\x1F]",
}
_SPELLED_NUMBERS = 400  # a percentage, minutes, degrees of a circle
_KINDS = {
    "integer": "json-integer",
    "number": "json-number",
    "object": "json-object",
    "array": "json-array",
    "boolean": "json-boolean",
    "null": "json-null",
}


def literal(text: str) -> str:
    """A text as a terminal."""
    for letter, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(letter, escaped)
    return f'"{text}"'


@dataclass(frozen=True)
class Spelling:
    """How values are written: the text of one value, and the rules for any string and for any value."""

    write: Callable[[Any], str]
    string: str
    anything: str


JSON = Spelling(json_text, "json-string", "json")


def joined(*parts: str) -> str:
    """One after the other; empty parts are left out."""
    return " ".join(part for part in parts if part)


class Rules:
    """Rules of one grammar; `more` are rules that stand in it where others name them."""

    def __init__(self, more: Mapping[str, str] | None = None) -> None:
        self._library = {**_JSON, **_PROSE, **(more or {})}
        self._bodies: dict[str, str] = {}

    def rule(self, hint: str, body: str) -> str:
        """The name of the rule with this body; equal bodies are one rule."""
        return self._bodies.setdefault(body, f"{hint}-{len(self._bodies)}")

    def value(self, schema: Mapping[str, Any], spelling: Spelling = JSON) -> str:
        """A rule for every value that the schema admits, and for more where the schema says what no grammar can."""
        if "enum" in schema or "const" in schema:
            values = schema.get("enum", [schema.get("const")])
            return self.rule("enum", " | ".join(literal(spelling.write(value)) for value in values))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                ways = dict.fromkeys(self.value(one, spelling) for one in schema[key])
                return self.rule("any", " | ".join(ways))
        kind = schema.get("type")
        if kind == "integer" and (whole := _whole_numbers(schema)) is not None:
            return self.rule("integer", f'({" | ".join(literal(str(number)) for number in whole)}) (".0")?')
        if isinstance(kind, list):
            return self.rule("any", " | ".join(self.value({**schema, "type": one}, spelling) for one in kind))
        if kind == "array" and isinstance(schema.get("items"), Mapping):
            item = self.value(schema["items"])
            return self.rule("array", f'"[" ({item} (", " {item})*)? "]"')
        if kind == "object" and schema.get("additionalProperties") is False:
            pairs = [(f"{json_text(name)}: ", self.value(one)) for name, one in named(schema)]
            return self.rule("object", joined('"{"', self.listed(pairs, schema, "", ", "), '"}"'))
        return spelling.string if kind == "string" else _KINDS.get(str(kind), spelling.anything)

    def listed(self, pairs: Sequence[tuple[str, str]], schema: Mapping[str, Any], first: str, later: str) -> str:
        """A rule for pairs in order, of which those that the schema does not require may be left out.

        Each pair is the text that names it and the rule of its value; `first` stands before the first that is
        written, `later` before all others. Empty where there are no pairs.
        """
        required = set(schema.get("required", ()))
        start = rest = ""
        for (name, value), (key, _) in zip(reversed(pairs), reversed(named(schema)), strict=True):
            begin = joined(literal(first + name), value, rest)
            go_on = joined(literal(later + name), value)
            if key in required:
                start, rest = self.rule("first", begin), self.rule("then", joined(go_on, rest))
            else:
                start = self.rule("first", f"{begin} | {start}" if start else f"({begin})?")
                rest = self.rule("then", joined(f"({go_on})?", rest))
        return start

    def text(self, root: str) -> str:
        """The grammar: its root, and all rules that the root reaches."""
        rules = {**self._library, **{name: body for body, name in self._bodies.items()}}
        lines = {"root": root}
        waiting = [root]
        while waiting:
            words = set(waiting.pop().replace("(", " ").replace(")", " ").replace("*", " ").replace("?", " ").split())
            for name in sorted(words & rules.keys() - lines.keys()):
                lines[name] = rules[name]
                waiting.append(rules[name])
        return "\n".join(f"{name} ::= {body}" for name, body in lines.items()) + "\n"


def _whole_numbers(schema: Mapping[str, Any]) -> range | None:
    """The numbers of a range that is stated at both ends and short enough to be spelled out."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if not isinstance(low, int) or not isinstance(high, int):
        return None
    numbers = range(low, high + 1)
    return numbers if 0 < len(numbers) <= _SPELLED_NUMBERS else None


def named(schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The properties of an object in the order in which they are written: by name."""
    return sorted(schema.get("properties", {}).items())
