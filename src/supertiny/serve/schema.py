"""Reads the body of a chat request. What is wrong is refused by the name of its field; what is unknown is ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError, from_json

from supertiny.core.records import Request, Tool
from supertiny.serve.refusals import Refusal, bad_field
from supertiny.serve.settings import Limits


@dataclass(frozen=True)
class Chat:
    """A chat request that is fit to be answered."""

    request: Request
    """Its `tools` is empty where all of the model's tools are allowed."""
    allowed: frozenset[str]
    """Names of the tools that the answer may call."""
    call_required: bool = False
    """Whether an answer without a call breaks the client's `tool_choice`."""
    one_call: bool = False
    """Whether the client takes at most one call."""
    max_tokens: int | None = None
    stream: bool = False
    stream_usage: bool = False


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Part(_Body):
    type: Literal["text"]
    text: str


def _parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if content is None or isinstance(content, list):
        return content
    raise PydanticCustomError("content", "should be a string or a list of text parts")


class _WrittenFunction(_Body):
    name: str
    arguments: str


class _WrittenCall(_Body):
    id: str = ""
    type: Literal["function"] = "function"
    function: _WrittenFunction


class _Message(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[_Part] | None, BeforeValidator(_parts)] = None
    tool_calls: list[_WrittenCall] | None = None
    tool_call_id: str | None = None


class _Function(_Body):
    name: str


class _OfferedTool(_Body):
    type: Literal["function"]
    function: _Function


class _ResponseFormat(_Body):
    type: Literal["text", "json_object", "json_schema"]


class _StreamOptions(_Body):
    include_usage: bool | None = None


class _ChatBody(_Body):
    model: str
    messages: Annotated[list[_Message], Field(min_length=1)]
    tools: list[_OfferedTool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    # The answer is greedy and bound by a grammar: these are checked, and change nothing.
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    response_format: _ResponseFormat | None = None


def read_chat(
    raw: bytes, id: str, model_name: str, tools: Mapping[str, Tool], limits: Limits, description: str = ""
) -> Chat:
    """A leading system message that says `description`, the task's own, is left out: the model has learned it.

    Raises Refusal with status 400, or 404 where the model is not ours.
    """
    body = _read_body(raw)
    if body.model != model_name:
        problem = f"model {body.model[:100]!r} is not here; this server has {model_name!r}"
        raise Refusal(404, problem, "model", "model_not_found")
    if body.n not in (None, 1):
        raise bad_field("n", "must be 1: the answer is greedy, so others would be equal")
    heard = [*enumerate(body.messages)][_says(body.messages, description) :]
    if len(body.messages) > limits.messages:
        problem = f"has {len(body.messages)} messages; at most {limits.messages} are taken"
        raise bad_field("messages", problem, "too_many_messages")
    _check_size(heard, limits)
    messages = tuple(_plain(message, f"messages[{place}]") for place, message in heard)
    if not any(message["role"] == "user" for message in messages):
        raise bad_field("messages", "needs a message of role 'user'")
    allowed, required = _choice(body.tool_choice, _offered(body.tools, tools))
    restricted = 0 < len(allowed) < len(tools)
    chosen = tuple(tool for name, tool in tools.items() if name in allowed) if restricted else ()
    bounds = [bound for bound in (body.max_completion_tokens, body.max_tokens) if bound is not None]
    return Chat(
        request=Request(id, messages, chosen),
        allowed=frozenset(allowed),
        call_required=required,
        one_call=body.parallel_tool_calls is False,
        max_tokens=min(bounds, default=None),
        stream=bool(body.stream),
        stream_usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def _read_body(raw: bytes) -> _ChatBody:
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}", None, "invalid_json") from None
    if not isinstance(value, dict):
        raise Refusal(400, "the body must be a JSON object", None, "invalid_json")
    try:
        return _ChatBody.model_validate(value)
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        place = _place(mistake["loc"])
        raise bad_field(place, mistake["msg"].removeprefix("Input ")) from None


def _place(parts: Sequence[int | str]) -> str:
    """('messages', 0, 'content') -> messages[0].content"""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def _says(messages: Sequence[_Message], description: str) -> int:
    """1 where the first message is the system's and says the description, else 0."""
    first = messages[0] if messages else None
    if first is None or first.role not in ("system", "developer") or not description:
        return 0
    return int("".join(part.text for part in first.content or ()).strip() == description.strip())


def _check_size(messages: Sequence[tuple[int, _Message]], limits: Limits) -> None:
    characters = 0
    for place, message in messages:
        characters += sum(len(part.text) for part in message.content or ())
        characters += sum(len(c.function.name) + len(c.function.arguments) for c in message.tool_calls or ())
        if characters > limits.characters:
            problem = f"the text is too long; at most {limits.characters} characters are taken in all messages together"
            raise bad_field(f"messages[{place}].content", problem, "context_length_exceeded")


def _plain(message: _Message, place: str) -> dict[str, Any]:
    """A message as engines and formats read it: the content is one string, never null."""
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise bad_field(f"{place}.content", "is needed")
    text = "".join(part.text for part in message.content or ())
    plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": text}
    if message.tool_calls and message.role == "assistant":
        for number, call in enumerate(message.tool_calls):
            _check_arguments(call.function.arguments, f"{place}.tool_calls[{number}].function.arguments")
        plain["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    if message.tool_call_id is not None and message.role == "tool":
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _check_arguments(text: str, place: str) -> None:
    try:
        arguments = from_json(text or "{}", allow_inf_nan=False)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise bad_field(place, "must be the JSON text of an object")


def _offered(offered: Sequence[_OfferedTool] | None, tools: Mapping[str, Tool]) -> list[str]:
    """Names of the tools that the request offers; all of the model's where it offers none."""
    if offered is None:
        return list(tools)
    if not offered:
        raise bad_field("tools", "must not be empty; leave it out for all tools of the model")
    for place, tool in enumerate(offered):
        if tool.function.name not in tools:
            problem = f"{tool.function.name[:100]!r} is not a tool of this model, which knows: {', '.join(tools)}"
            raise bad_field(f"tools[{place}].function.name", problem, "unknown_tool")
    return [tool.function.name for tool in offered]


def _choice(choice: Any, offered: Sequence[str]) -> tuple[Sequence[str], bool]:
    """(names that the answer may call, whether it must call one)"""
    if choice is None or choice == "auto":
        return offered, False
    if choice == "none":
        return (), False
    if choice == "required":
        return offered, True
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or name not in offered:
            problem = f"must be one of the tools: {', '.join(offered)}"
            raise bad_field("tool_choice.function.name", problem, "unknown_tool")
        return (name,), True
    known = json.dumps({"type": "function", "function": {"name": "NAME"}})
    raise bad_field("tool_choice", f"must be 'none', 'auto', 'required' or {known}")
