"""ChatML prompt, JSON list of calls: what chat models are used to.

Use when: the student shall be read by other programs as it stands, or is too little trained for a format of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from supertiny.core.records import Answer, Call, Grammar, Prompt, Request, Tool, said
from supertiny.formats._grammar import Rules, joined, literal, named
from supertiny.formats._text import json_text, prose, read_prose, whole

_FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)  # How chat models show JSON, often after a sentence.
_NAMED = '{{"name": {}, "arguments": '  # The name first: the arguments depend on it.


@dataclass(frozen=True)
class ChatJson:
    """Prompt: the messages in ChatML, no tools and no system prompt but the request's own.

    Answer: `[{"name": ..., "arguments": {...}}]`, or plain text where no function serves. Calls in a Markdown fence
    are read too, whatever is said around it.
    """

    stop: str = "<|im_end|>"
    """Text of the token that ends a message; the student's tokenizer must know it as one token."""

    rules = (
        "Turn the user's request into function calls. Write a JSON list of calls and nothing else: "
        '[{"name": "Function", "arguments": {"argument": "value"}}]. '
        "Name only arguments that the request states or that its function needs, "
        "with values from the lists where there are some. Write [] when no function serves the request."
    )

    def encode(self, request: Request, tools: Sequence[Tool]) -> Prompt:
        """The conversation as literal text, so that no engine's chat template can change a byte of it."""
        turns = []
        for message in request.messages:
            text = said(message)
            if message.get("tool_calls"):
                calls = tuple(Call.from_json(call) for call in message["tool_calls"])
                text = self.write(Answer(calls, text))
            # A special token that a user typed stays text: it must not end the user's turn.
            turns.append(f"<|im_start|>{message['role']}\n{text.replace('<|', '< |')}{self.stop}\n")
        return Prompt(text="".join(turns) + "<|im_start|>assistant\n")

    def write(self, answer: Answer) -> str:
        if not answer.calls:
            misread = bool(_fenced(answer.text))
            return json_text(answer.text) if misread else prose(answer.text, "[") if answer.text else "[]"
        calls = "[" + ", ".join(_written(call) for call in answer.calls) + "]"
        return f"{calls}\n{prose(answer.text)}" if answer.text else calls

    def decode(self, text: str) -> Answer:
        if not text.startswith("["):
            calls = () if text.startswith('"') else _fenced(text)
            return whole(Answer(calls, "" if calls else read_prose(text)))
        rows, end = json.JSONDecoder().raw_decode(text)
        if text[end : end + 1] not in ("", "\n"):
            raise ValueError(f"expected the end of the text at {end}, found {text[end : end + 10]!r}")
        return whole(Answer(_read(rows), read_prose(text[end + 1 :])))

    def grammar(self, tools: Sequence[Tool], words: bool = True) -> Grammar:
        rules = Rules()
        plain = rules.rule("plain", r'json-string | [^\x00-\x20"\[] prose-letter*') + " | " if words else ""
        if not tools:
            return Grammar("ebnf", rules.text(f'{plain}"[]"'))
        ways = []
        for tool in tools:
            pairs = [(f"{json_text(name)}: ", rules.value(schema)) for name, schema in named(tool.parameters)]
            arguments = rules.listed(pairs, tool.parameters, "", ", ")
            ways.append(joined(literal(_NAMED.format(json_text(tool.name)) + "{"), arguments, '"}}"'))
        call = rules.rule("call", " | ".join(ways))
        more = ' ("\\n" prose)?' if words else ""
        return Grammar("ebnf", rules.text(f'{plain}"[" ({call} (", " {call})*)? "]"{more}'))


def _written(call: Call) -> str:
    return _NAMED.format(json_text(call.tool)) + json_text(dict(call.arguments)) + "}"


def _read(rows: Any) -> tuple[Call, ...]:
    """Raises ValueError where the rows are no calls."""
    try:
        return tuple(Call(str(row["name"]), dict(row["arguments"])) for row in rows)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a list of calls: {error!r}") from None


def _fenced(text: str) -> tuple[Call, ...]:
    """The calls, one or a list of them, of the fenced blocks that hold calls."""
    calls: tuple[Call, ...] = ()
    for block in _FENCED.findall(text):
        with suppress(ValueError):
            rows = json.loads(block)
            calls += _read(rows if isinstance(rows, list) else [rows])
    return calls
