"""The nouns that every room speaks of. All are frozen; none needs torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from supertiny.core.schemas import without_references

if TYPE_CHECKING:
    import numpy as np

Message = Mapping[str, Any]  # OpenAI's chat message: {"role": ..., "content": ...}
Outcome = Literal["pass", "fail", "abstain"]


def said(message: Message) -> str:
    """The text of a chat message; of content given in parts, the texts one after the other, a line each."""
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))


@dataclass(frozen=True)
class Tool:
    """A function that a request may be turned into."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments, an object."""

    @classmethod
    def from_openai(cls, tool: Mapping[str, Any]) -> Tool:
        """References in the parameters are written out. Raises ValueError where they cannot be."""
        function = tool.get("function", tool)
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        whole = without_references(schema, f"parameters of {function['name']!r}")
        return cls(str(function["name"]), str(function.get("description", "")), whole)

    def to_openai(self) -> dict[str, Any]:
        body = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": body}


@dataclass(frozen=True)
class Call:
    """One function call."""

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.tool, "arguments": dict(self.arguments)}

    @classmethod
    def from_json(cls, call: Mapping[str, Any]) -> Call:
        """Reads `{"name", "arguments"}` and OpenAI's tool_calls entries, whose arguments are a JSON string."""
        body = call.get("function", call)
        arguments = body.get("arguments", {})
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}")
        return cls(str(body["name"]), arguments)


@dataclass(frozen=True)
class Request:
    """What a user asks. `tools` is empty where the task's tools hold; content given in parts becomes one text."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()

    def __post_init__(self) -> None:
        if any(isinstance(message.get("content"), list) for message in self.messages):
            flat = (
                {**message, "content": said(message)} if isinstance(message.get("content"), list) else message
                for message in self.messages
            )
            object.__setattr__(self, "messages", tuple(flat))

    @classmethod
    def from_text(cls, text: str, id: str = "") -> Request:
        return cls(id, ({"role": "user", "content": text},))

    @property
    def text(self) -> str:
        """The last user message."""
        return next((said(m) for m in reversed(self.messages) if m.get("role") == "user"), "")


@dataclass(frozen=True)
class Cost:
    """What an answer took. `seconds` is time on the engine; tokens_cached is the part of tokens_in that was reused."""

    dollars: float = 0.0
    seconds: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.dollars + other.dollars,
            self.seconds + other.seconds,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.tokens_cached + other.tokens_cached,
        )


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Log-probabilities of a continuation of T tokens, with the scorer's k best tokens at each place."""

    tokens: np.ndarray
    """(T,) token ids of the continuation."""
    ids: np.ndarray
    """(T, k) ids of the k most probable tokens."""
    logprobs: np.ndarray
    """(T, k) their natural-log probabilities over the full vocabulary."""
    token_logprobs: np.ndarray
    """(T,) log-probabilities of the continuation's own tokens."""
    tokens_in: int = 0
    """Tokens that were read, the prompt's with them; 0 where that is not said."""
    tokens_out: int = 0
    """Tokens that a server writes besides, and bills."""


@dataclass(frozen=True)
class Answer:
    """What an answerer says: calls, or text where no function serves."""

    calls: tuple[Call, ...] = ()
    text: str = ""
    cost: Cost = Cost()
    by: str = ""
    confidence: float | None = None
    """0..1 where the answerer has one (share of votes, token probability)."""
    raw: str = ""
    """The model's own words, for the side-by-side view."""
    readable: bool = True
    """False where the words were no answer: `calls` are empty then, and do not say that no function serves."""


@dataclass(frozen=True)
class Verdict:
    """The verifier's word on an answer. `similarity` to gold is 0..1, 0 where there is no gold."""

    outcome: Outcome
    similarity: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Example:
    """A request with an answer (gold or a teacher's), what the verifier said of it, and where it came from."""

    request: Request
    answer: Answer | None = None
    verdict: Verdict | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"id": self.request.id, "messages": [dict(m) for m in self.request.messages]}
        if self.request.tools:
            row["tools"] = [tool.to_openai() for tool in self.request.tools]
        if self.answer is not None:
            row["calls"] = [call.to_json() for call in self.answer.calls]
            row["text_answer"] = self.answer.text
            row["answer"] = {"by": self.answer.by, "confidence": self.answer.confidence, "raw": self.answer.raw}
            if not self.answer.readable:
                row["answer"]["readable"] = False
            row["cost"] = asdict(self.answer.cost)
        if self.verdict is not None:
            row["verdict"] = asdict(self.verdict)
        if self.provenance:
            row["provenance"] = dict(self.provenance)
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Example:
        """Reads what `to_json` wrote, and a task's own `{"text" | "messages", "calls"}` rows."""
        messages = row.get("messages") or [{"role": "user", "content": row["text"]}]
        tools = tuple(Tool.from_openai(tool) for tool in row.get("tools", ()))
        request = Request(str(row.get("id", "")), tuple(messages), tools)
        answer = None
        if row.get("calls") is not None:
            calls = tuple(Call.from_json(call) for call in row["calls"])
            cost = Cost(**row.get("cost", {}))
            answer = Answer(calls, row.get("text_answer", ""), cost, **row.get("answer", {}))
        verdict = Verdict(**row["verdict"]) if "verdict" in row else None
        return cls(request, answer, verdict, row.get("provenance", {}))


@dataclass(frozen=True)
class Prompt:
    """What an engine completes: chat messages that it renders by its model's template, then literal text.

    With `messages` empty the text is the whole prompt, byte for byte. With messages, the text is the beginning of the
    assistant's turn. `shared` counts the leading messages that other prompts of the batch repeat: engines compute
    them once.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""
    shared: int = 0


@dataclass(frozen=True)
class Grammar:
    """What a completion may be: the text of a JSON Schema, of a regular expression, or of a GBNF/EBNF grammar."""

    kind: Literal["json_schema", "regex", "ebnf"]
    text: str


@dataclass(frozen=True)
class Sampling:
    """How a completion is drawn; temperature 0 is greedy."""

    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Strings that end the completion; they are not part of it."""


@dataclass(frozen=True)
class Completion:
    """What an engine wrote for one prompt."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    seconds: float = 0.0
    """From the start of this prompt's work to its end; prompts of a batch overlap."""
    logprob: float | None = None
    """Sum of natural-log probabilities of the written tokens, where the engine knows it."""
    finish: Literal["stop", "length", "error"] = "stop"
    scored: int | None = None
    """Tokens of a given text, where that was scored and nothing was written."""


@dataclass(frozen=True)
class Price:
    """What an engine costs: by the token where it is hosted, by the machine-hour where it is ours."""

    dollars_per_million_in: float = 0.0
    dollars_per_million_out: float = 0.0
    dollars_per_million_cached: float = 0.0
    dollars_per_hour: float = 0.0

    def dollars(self, tokens_in: int, tokens_out: int, tokens_cached: int = 0, seconds: float = 0.0) -> float:
        fresh = tokens_in - tokens_cached
        by_token = (
            fresh * self.dollars_per_million_in
            + tokens_cached * self.dollars_per_million_cached
            + tokens_out * self.dollars_per_million_out
        )
        return by_token / 1e6 + seconds / 3600 * self.dollars_per_hour

    @property
    def is_billed(self) -> bool:
        """Whether somebody bills it by the token."""
        return self.dollars_per_million_in > 0 or self.dollars_per_million_out > 0

    def times(self, share: float) -> Price:
        """A share of the price of tokens; machine-hours cost what they cost."""
        return Price(
            self.dollars_per_million_in * share,
            self.dollars_per_million_out * share,
            self.dollars_per_million_cached * share,
            self.dollars_per_hour,
        )
