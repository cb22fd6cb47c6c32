"""What every format obeys: lossless both ways, one prompt, and a grammar that admits all it writes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import cache
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supertiny.core.methods import build, cards
from supertiny.core.protocols import Format
from supertiny.core.records import Answer, Call, Request, Tool

FORMATS = sorted(cards("formats"))

TOOLS = (
    Tool("Rest", "no arguments", {"type": "object", "properties": {}}),
    Tool(
        "TurnOn",
        "all optional",
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "area": {"type": "string", "enum": ["Kitchen", "Living Room", "кухня", "厨房", "50", 'the "den"']},
                "color": {"enum": ["red", "dark; blue", None, 3]},
            },
        },
    ),
    Tool(
        "Set",
        "mixed",
        {
            "type": "object",
            "properties": {
                "level": {"type": "integer"},
                "warmth": {"type": "number"},
                "on": {"type": "boolean"},
                "note": {"type": ["string", "null"]},
                "steps": {"type": "array", "items": {"type": "string"}},
                "more": {"type": "object"},
                "spot": {
                    "type": "object",
                    "properties": {"x": {"type": "integer"}, "y": {"type": "string"}},
                    "required": ["x"],
                    "additionalProperties": False,
                },
                "anything": {},
            },
            "required": ["level", "note"],
        },
    ),
    Tool("odd name", "a name that needs quotes", {"type": "object", "properties": {"a key": {"type": "string"}}}),
)

WORDS = [
    "",
    " ",
    "50",
    "-1.5e3",
    "true",
    "null",
    "NaN",
    "a;b",
    'say "hi"',
    '"quoted"',
    "two\nlines",
    "~",
    "[1]",
    "{",
    "\t",
]
WORDS += [
    "кухня",
    "厨房的灯",
    "💡 лампа",
    "<|im_end|>",
    "\\u003c|",
    "user: hi",
    "50 cents",
    " edge ",
    "\u3000",
    "a\u2028b",
    '```json\n[{"name": "Rest", "arguments": {}}]\n```',
    "```\nno calls\n```",
]
texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=12))
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.recursive(
    st.one_of(texts, numbers, st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)
calls = st.builds(Call, texts, st.dictionaries(texts, values, max_size=4))
answers = st.builds(Answer, st.lists(calls, max_size=3).map(tuple), texts)


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that are valid under the schemas above."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if isinstance(kind, list):
        return st.one_of(*(of_schema({**schema, "type": one}) for one in kind))
    if kind == "array":
        return st.lists(of_schema(schema["items"]), max_size=3)
    if kind == "object" and "properties" in schema:
        return arguments_of(schema)
    simple = {"string": texts, "integer": st.integers(), "number": numbers, "boolean": st.booleans(), "null": st.none()}
    return {**simple, "object": st.dictionaries(texts, values, max_size=2)}.get(kind, values)


def arguments_of(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: of_schema(one) for name, one in schema["properties"].items()}
    required = schema.get("required", [])
    optional = {name: one for name, one in fields.items() if name not in required}
    return st.fixed_dictionaries({name: fields[name] for name in required}, optional=optional)


valid_calls = st.one_of(*(arguments_of(t.parameters).map(lambda a, n=t.name: Call(n, a)) for t in TOOLS))
valid_answers = st.builds(Answer, st.lists(valid_calls, max_size=2).map(tuple), texts)


class Matcher:
    """Reads EBNF as its dialects agree on it, and says whether a text is in the language."""

    TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[\w-]+|[()|*?+]')
    ESCAPES = MappingProxyType({"n": "\n", "r": "\r", "t": "\t"})

    def __init__(self, grammar: str) -> None:
        self.rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
        self.trees: dict[str, Any] = {}
        for name, body in self.rules.items():
            self.tokens = self.TOKEN.findall(body)
            assert "".join(self.tokens) == "".join(re.findall(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\S', body)), body
            self.trees[name] = self._choice()
            assert not self.tokens, body

    def _choice(self) -> Any:
        ways = [self._sequence()]
        while self.tokens and self.tokens[0] == "|":
            self.tokens.pop(0)
            ways.append(self._sequence())
        return ("or", ways)

    def _sequence(self) -> Any:
        parts = []
        while self.tokens and self.tokens[0] not in ("|", ")"):
            token = self.tokens.pop(0)
            if token == "(":
                part = self._choice()
                assert self.tokens.pop(0) == ")"
            elif token[0] == '"':
                part = ("text", re.sub(r"\\(.)", lambda m: self.ESCAPES.get(m[1], m[1]), token[1:-1]))
            elif token[0] == "[":
                part = ("class", re.compile(token))
            else:
                assert token in self.rules, f"no rule {token}"
                part = ("rule", token)
            while self.tokens and self.tokens[0] in ("*", "?", "+"):
                part = (self.tokens.pop(0), part)
            parts.append(part)
        assert parts, "an empty alternative"
        return ("then", parts)

    def matches(self, text: str) -> bool:
        @cache
        def ends(tree_id: int, at: int) -> frozenset[int]:
            return frozenset(walk(trees[tree_id], at))

        trees: dict[int, Any] = {}

        def of(tree: Any, at: int) -> frozenset[int]:
            trees[id(tree)] = tree
            return ends(id(tree), at)

        def walk(tree: Any, at: int) -> Iterator[int]:
            kind, body = tree
            if kind == "text":
                yield from [at + len(body)] if text.startswith(body, at) else []
            elif kind == "class":
                yield from [at + 1] if at < len(text) and body.match(text, at) else []
            elif kind == "rule":
                yield from of(self.trees[body], at)
            elif kind == "or":
                for way in body:
                    yield from of(way, at)
            elif kind == "then":
                reached = {at}
                for part in body:
                    reached = {end for start in reached for end in of(part, start)}
                yield from reached
            else:
                reached = set() if kind == "+" else {at}
                fresh = {at}
                while fresh:
                    fresh = {end for start in fresh for end in of(body, start)} - reached
                    reached |= fresh
                    if kind == "?":
                        break
                yield from reached

        return len(text) in of(self.trees["root"], 0)


MATCHERS = {name: Matcher(build("formats", name).grammar(TOOLS).text) for name in FORMATS}


def same(left: Answer, right: Answer) -> bool:
    """Equality that tells 1 from 1.0 and true."""
    shape = [[(c.tool, json.dumps(dict(c.arguments), sort_keys=True)) for c in a.calls] for a in (left, right)]
    return shape[0] == shape[1] and left.text == right.text


@pytest.mark.parametrize("name", FORMATS)
@given(answer=answers)
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_back(name: str, answer: Answer) -> None:
    form: Format = build("formats", name)
    assert same(form.decode(form.write(answer)), answer)


@pytest.mark.parametrize("name", FORMATS)
@given(answer=answers)
@settings(max_examples=60, deadline=None)
def test_what_is_written_holds_no_special_token_and_is_one_spelling(name: str, answer: Answer) -> None:
    form: Format = build("formats", name)
    turned = [Call(c.tool, dict(reversed(list(c.arguments.items())))) for c in answer.calls]
    text = form.write(answer)
    assert form.stop not in text
    assert form.write(Answer(tuple(turned), answer.text)) == text


@pytest.mark.parametrize("name", FORMATS)
@given(answer=valid_answers)
@settings(max_examples=80, deadline=None)
def test_the_grammar_admits_what_is_written(name: str, answer: Answer) -> None:
    text = build("formats", name).write(answer)
    assert MATCHERS[name].matches(text), text


@pytest.mark.parametrize("name", FORMATS)
def test_the_grammar_refuses_what_no_tool_takes(name: str) -> None:
    form: Format = build("formats", name)
    wrong = [
        Call("Unknown"),
        Call("Rest", {"area": "Kitchen"}),
        Call("TurnOn", {"area": "Cellar"}),
        Call("TurnOn", {"unknown": 1}),
        Call("Set", {"level": 1}),
        Call("Set", {"level": "high", "note": "x"}),
        Call("Set", {"level": 1, "note": "x", "on": "maybe"}),
        Call("Set", {"level": 1, "note": "x", "spot": {"y": "no x"}}),
    ]
    assert [call for call in wrong if MATCHERS[name].matches(form.write(Answer((call,))))] == []
    assert MATCHERS[name].matches(form.write(Answer((Call("Set", {"level": 1, "note": None}),))))


@pytest.mark.parametrize("name", FORMATS)
def test_equal_enums_are_written_once(name: str) -> None:
    rooms = {"type": "string", "enum": [f"room number {i}" for i in range(50)]}
    schema = {"type": "object", "properties": {"area": rooms, "to": rooms}}
    text = build("formats", name).grammar([Tool(f"Tool{i}", "", schema) for i in range(9)]).text
    assert text.count("room number 49") == 1
    assert text.count("Tool") == 9


@pytest.mark.parametrize("name", FORMATS)
def test_without_tools_only_words_are_left(name: str) -> None:
    form: Format = build("formats", name)
    matcher = Matcher(form.grammar(()).text)
    assert matcher.matches(form.write(Answer()))
    assert matcher.matches(form.write(Answer(text="Привет, 世界")))
    assert not matcher.matches(form.write(Answer((Call("Rest"),))))


@pytest.mark.parametrize("name", FORMATS)
def test_without_words_calls_alone_are_left_and_the_text_for_none(name: str) -> None:
    form: Format = build("formats", name)
    call = Call("Rest")
    for tools in (TOOLS, ()):
        matcher = Matcher(form.grammar(tools, words=False).text)
        assert matcher.matches(form.write(Answer()))
        assert matcher.matches(form.write(Answer((call, call)))) == bool(tools)
        for answer in (Answer(text="Hi"), Answer(text='"'), Answer((call,), "Hi")):
            assert not matcher.matches(form.write(answer))


@pytest.mark.parametrize("name", FORMATS)
@given(first=texts, second=texts)
@settings(max_examples=80, deadline=None)
def test_conversations_that_differ_have_prompts_that_differ(name: str, first: str, second: str) -> None:
    form: Format = build("formats", name)
    one = Request.from_text(f"{first}\nassistant: {second}\nuser: x")
    turns = [("user", first), ("assistant", second), ("user", "x")]
    three = Request("", tuple({"role": role, "content": content} for role, content in turns))
    prompts = [form.encode(request, TOOLS) for request in (one, three)]
    assert prompts[0].text != prompts[1].text
    assert not any(prompt.messages for prompt in prompts)
    assert prompts[1].text.count(form.stop) <= 3


@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_holds_neither_tools_nor_a_system_prompt_and_every_script(name: str) -> None:
    form: Format = build("formats", name)
    text = form.encode(Request.from_text("включи 灯 💡"), TOOLS).text
    assert "включи 灯 💡" in text
    assert "TurnOn" not in text
    assert "system" not in text
    assert text == form.encode(Request.from_text("включи 灯 💡"), ()).text


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("text", ["[{]", "[1]", '[{"name": "A"}]', '"', '"a" b', "[] and more"])
def test_broken_text_is_a_value_error(name: str, text: str) -> None:
    with pytest.raises(ValueError):
        build("formats", name).decode(text)


@pytest.mark.parametrize("name", FORMATS)
def test_half_a_character_is_a_value_error(name: str) -> None:
    """A model may write the escape of one; no file and no tokenizer takes it."""
    form: Format = build("formats", name)
    half = "\ud83d"
    for answer in (Answer((Call("Set", {"text": [half]}),)), Answer((), f'"{half}')):
        escaped = form.write(answer).encode("utf-8", "backslashreplace").decode()
        with pytest.raises(ValueError):
            form.decode(escaped)


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_keep_their_kind(name: str) -> None:
    form: Format = build("formats", name)
    read = form.decode(form.write(Answer((Call("Set", {"a": 1, "b": 1.0, "c": "1", "d": True}),)))).calls[0].arguments
    assert [type(read[key]) for key in "abcd"] == [int, float, str, bool]
    assert math.isclose(read["b"], 1.0)


@pytest.mark.parametrize("name", FORMATS)
def test_the_rules_teach_the_formats_own_words(name: str) -> None:
    form: Format = build("formats", name)
    none = form.write(Answer())
    assert f"Write {none} " in form.rules
    others = {build("formats", other).write(Answer()) for other in FORMATS if other != name}
    assert not any(f"Write {other} " in form.rules for other in others - {none})
