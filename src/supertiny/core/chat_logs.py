"""Conversations as other programs keep them, read as a request and its answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from supertiny.core.records import Call, Message, Tool, said
from supertiny.core.type_names import schema_words
from supertiny.core.verifying import check_schema

# ShareGPT's words for who speaks; OpenAI's own stand for themselves.
_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}


def read_log(log: Mapping[str, Any]) -> dict[str, Any]:
    """A task's row: `messages`, `calls` and, where it calls nothing, `text_answer`.

    The assistant's message after the last user's is the answer: its tool_calls, or no call where it has none. What
    stood before is the request. Raises ValueError, KeyError or TypeError where the log is none.
    """
    messages = _messages(log)
    asked = [n for n, message in enumerate(messages) if message.get("role") == "user"]
    turns = ((u, n) for u in reversed(asked) for n in range(u + 1, len(messages)))
    place = next((n for _, n in turns if messages[n].get("role") == "assistant"), None)
    if place is None:
        raise ValueError("has no assistant's message after a user's, so no answer")
    request, answer = messages[:place], messages[place]
    calls = [Call.from_json(call).to_json() for call in answer.get("tool_calls") or ()]
    row: dict[str, Any] = {"messages": list(request), "calls": calls}
    if not calls and answer.get("content"):
        row["text_answer"] = said(answer)
    return row


def read_tools(value: Any) -> list[Tool]:
    """Tools of a log: a list in OpenAI's format, the same as JSON text, or nothing.

    Types that are named as Python names them are put into JSON Schema's words. Raises ValueError where one is none.
    """
    listed = json.loads(value) if isinstance(value, str) and value.strip() else value or []
    if not isinstance(listed, list):
        raise ValueError(f"tools must be a list; found {type(listed).__name__}")
    tools = [Tool.from_openai(schema_words(tool)) for tool in listed]
    problem = next(filter(None, map(check_schema, tools)), "")
    if problem:
        raise ValueError(problem)
    return tools


def _messages(log: Mapping[str, Any]) -> Sequence[Message]:
    """OpenAI's `messages`, TRL's `prompt` and `completion` of messages, or ShareGPT's `conversations`."""
    messages = log.get("messages")
    if messages is None and isinstance(log.get("prompt"), list) and isinstance(log.get("completion"), list):
        messages = [*log["prompt"], *log["completion"]]
    if messages is None and isinstance(log.get("conversations"), list):
        system = [{"role": "system", "content": log["system"]}] if log.get("system") else []
        messages = system + [_of_sharegpt(turn) for turn in log["conversations"]]
    if not isinstance(messages, list):
        raise ValueError("has no messages")
    return messages


def _of_sharegpt(turn: Mapping[str, Any]) -> dict[str, Any]:
    speaker = turn["from"] if "from" in turn else turn["role"]
    value = turn["value"] if "value" in turn else turn["content"]
    if speaker != "function_call":
        return {"role": _ROLES.get(speaker, speaker), "content": value}
    calls = json.loads(value)
    calls = calls if isinstance(calls, list) else [calls]
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": call} for call in calls],
    }
