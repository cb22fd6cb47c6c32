"""An answer in OpenAI's words: one completion, or the chunks of a stream that say the same."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from supertiny.core.records import Answer, Call
from supertiny.serve.refusals import Refusal
from supertiny.serve.schema import Chat


@dataclass(frozen=True)
class Reply:
    """What goes back to the client."""

    id: str
    model: str
    created: int
    """Seconds since 1970."""
    calls: tuple[tuple[str, Call], ...]
    """Calls with their ids."""
    text: str
    finish: str
    """tool_calls, stop, or length where the answer has more tokens than the client takes."""
    answer: Answer
    doubt: float

    @property
    def completion(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self.calls:
            message |= {"content": None, "tool_calls": [_written(id, call) for id, call in self.calls]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": self._usage,
            "supertiny": self._extension,
        }

    def events(self, with_usage: bool) -> Iterator[bytes]:
        """Server-sent events: the role, each call's name and then its arguments (or the text), why it ended."""
        first = True
        for delta in self._deltas():
            chunk = self._chunk(delta | ({"role": "assistant"} if first else {}), None, with_usage)
            yield _event(chunk)
            first = False
        yield _event(self._chunk({}, self.finish, with_usage) | {"supertiny": self._extension})
        if with_usage:
            yield _event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage})
        yield b"data: [DONE]\n\n"

    def _deltas(self) -> Iterator[dict[str, Any]]:
        if not self.calls:
            yield {"content": ""}
            if self.text:
                yield {"content": self.text}
            return
        yield {"content": None}
        for place, (id, call) in enumerate(self.calls):
            written = _written(id, call)
            arguments = written["function"]["arguments"]
            opening = written | {"function": {"name": call.tool, "arguments": ""}}
            yield {"tool_calls": [{"index": place, **opening}]}
            yield {"tool_calls": [{"index": place, "function": {"arguments": arguments}}]}

    def _chunk(self, delta: dict[str, Any], finish: str | None, with_usage: bool) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return chunk | {"usage": None} if with_usage else chunk

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    @property
    def _usage(self) -> dict[str, Any]:
        cost = self.answer.cost
        return {
            "prompt_tokens": cost.tokens_in,
            "completion_tokens": cost.tokens_out,
            "total_tokens": cost.tokens_in + cost.tokens_out,
            "prompt_tokens_details": {"cached_tokens": cost.tokens_cached},
        }

    @property
    def _extension(self) -> dict[str, Any]:
        return {"by": self.answer.by, "confidence": self.answer.confidence, "doubt": self.doubt}


def reply_to(chat: Chat, answer: Answer, doubt: float, model: str) -> Reply:
    """Keeps to what the client allowed. Raises Refusal where it requires a call and the model makes none."""
    calls = answer.calls if all(call.tool in chat.allowed for call in answer.calls) else ()
    if chat.one_call:
        calls = calls[:1]
    if chat.call_required and not calls:
        problem = "tool_choice: none of the tools that it allows serves this request"
        raise Refusal(422, problem, "tool_choice", "no_call")
    text, finish = ("", "tool_calls") if calls else (answer.text, "stop")
    if chat.max_tokens is not None and answer.cost.tokens_out > chat.max_tokens:
        calls, text, finish = (), "", "length"  # half a call is worse than none
    numbered = tuple((f"call_{uuid.uuid4().hex[:24]}", call) for call in calls)
    return Reply(chat.request.id, model, int(time.time()), numbered, text, finish, answer, doubt)


def json_bytes(body: Any) -> bytes:
    """UTF-8; half a surrogate pair, which a model can write as an escape, becomes a question mark."""
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def _written(id: str, call: Call) -> dict[str, Any]:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    return {"id": id, "type": "function", "function": {"name": call.tool, "arguments": arguments}}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json_bytes(chunk) + b"\n\n"
