"""A line per call, `Tool name value; name value`: the fewest tokens that still say everything.

Use when: the student is trained for the task; it needs neither braces nor the list of tools to be understood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from supertiny.core.records import Answer, Call, Grammar, Prompt, Request, Tool, said
from supertiny.formats._grammar import Rules, Spelling, joined, literal, named
from supertiny.formats._text import bare_value, is_json, is_plain, json_text, prose, read_prose, whole

_ROLE = re.compile(r"\w+: ")
_NAME = re.compile(r'[^\s\x00-\x20"~;\[{<][^\s\x00-\x20";<]*')
_NO_CALL = "~"
_BARE = {
    "free": "bare | json",
    "bare": r'json-string | bare-first (" "* bare-letter)*',
    "bare-first": r'[^\x00-\x20";\[{]',
    "bare-letter": r'[^\x00-\x20";]',
}


@dataclass(frozen=True)
class Compact:
    """Prompt: the request and a line with `>`. Answer: calls as lines, or `~` and the text where no function serves.

    A string stands bare where it can be read as nothing else, and as JSON where it cannot; arguments stand in the
    order of their names, so that one meaning has one spelling.
    """

    stop: str = "<|im_end|>"
    """Text of the token that ends an answer; the student's tokenizer must know it as one token."""

    rules = (
        "Turn the user's request into function calls. Write one call per line as: "
        "Function argument value; argument value. "
        "Name only arguments that the request states or that its function needs, "
        "with values from the lists where there are some. Write ~ alone when no function serves the request."
    )

    def encode(self, request: Request, tools: Sequence[Tool]) -> Prompt:
        """The conversation; blanks around a text are no part of its meaning and are left out."""
        messages = request.messages
        if len(messages) == 1 and messages[0].get("role") == "user":
            return Prompt(text=_line(said(messages[0])) + "\n>")
        lines = [f"{message['role']}: {_line(self._content(message))}" for message in messages]
        return Prompt(text="\n".join(lines) + "\n>")

    def _content(self, message: Mapping[str, Any]) -> str:
        if not message.get("tool_calls"):
            return said(message)
        return self.write(Answer(tuple(Call.from_json(call) for call in message["tool_calls"]), said(message)))

    def write(self, answer: Answer) -> str:
        lines = [_written(call) for call in answer.calls]
        if answer.text or not lines:
            lines.append(_NO_CALL + prose(answer.text))
        return "\n".join(lines)

    def decode(self, text: str) -> Answer:
        calls = []
        while text and not text.startswith(_NO_CALL):
            line, _, text = text.partition("\n")
            calls.append(_read(line))
        if not text and not calls:
            raise ValueError("an empty text is no answer")
        return whole(Answer(tuple(calls), read_prose(text[1:])))

    def grammar(self, tools: Sequence[Tool], words: bool = True) -> Grammar:
        rules, spelling = Rules(_BARE), Spelling(_value, "bare", "free")
        none = rules.rule("words", f"{literal(_NO_CALL)} prose?") if words else literal(_NO_CALL)
        if not tools:
            return Grammar("ebnf", rules.text(none))
        ways = []
        for tool in tools:
            pairs = [(_name(name) + " ", rules.value(schema, spelling)) for name, schema in named(tool.parameters)]
            ways.append(joined(literal(_name(tool.name)), rules.listed(pairs, tool.parameters, " ", "; ")))
        call = rules.rule("call", " | ".join(ways))
        more = f' ("\\n" {none})?' if words else ""
        return Grammar("ebnf", rules.text(f'{none} | {call} ("\\n" {call})*{more}'))


def _line(text: str) -> str:
    text = text.strip()
    return text if text and is_plain(text) and "\n" not in text and not _ROLE.match(text) else json_text(text)


def _name(name: str) -> str:
    return name if _NAME.fullmatch(name) else json_text(name)


def _value(value: Any) -> str:
    return value if isinstance(value, str) and _stands_bare(value) else json_text(value)


def _stands_bare(text: str) -> bool:
    clear = bool(text) and is_plain(text, "[{") and not any(letter in text for letter in ';"\n\t')
    return clear and not is_json(text)


def _written(call: Call) -> str:
    arguments = "; ".join(f"{_name(name)} {_value(value)}" for name, value in sorted(call.arguments.items()))
    return f"{_name(call.tool)} {arguments}".rstrip(" ")


def _read(line: str) -> Call:
    """Raises ValueError where the line is no call."""
    tool, at = _read_name(line, 0)
    arguments: dict[str, Any] = {}
    separator = " "
    while at < len(line):
        if not line.startswith(separator, at):
            raise ValueError(f"expected {separator!r} at {at} of {line!r}")
        name, at = _read_name(line, at + len(separator))
        if not line.startswith(" ", at) or name in arguments:
            raise ValueError(f"argument {name!r} of {line!r} has no value, or has two")
        arguments[name], at = _read_value(line, at + 1)
        separator = "; "
    return Call(tool, arguments)


def _read_name(line: str, at: int) -> tuple[str, int]:
    if line.startswith('"', at):
        name, end = json.JSONDecoder().raw_decode(line, at)
        return str(name), end
    found = _NAME.match(line, at)
    if not found:
        raise ValueError(f"expected a name at {at} of {line!r}")
    return found.group(), found.end()


def _read_value(line: str, at: int) -> tuple[Any, int]:
    if line[at : at + 1] in ('"', "[", "{"):
        return json.JSONDecoder().raw_decode(line, at)
    end = line.find(";", at)
    end = len(line) if end < 0 else end
    text = line[at:end]
    if not text or text.strip() != text:
        raise ValueError(f"expected a value at {at} of {line!r}")
    return bare_value(text), end
