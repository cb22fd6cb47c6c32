"""What goes over the wire to an OpenAI-compatible server and what comes back; no network in here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from supertiny.core.records import Completion, Grammar, Prompt, Sampling, TokenScores

# Servers that can be told to go on with a begun answer; others may begin it anew, which is taken off.
CONTINUES = {"continue_final_message": True, "add_generation_prompt": False}
CONTINUING = {"vllm": CONTINUES, "sglang": {"continue_final_message": True}}


class FailedTryError(Exception):
    """Worth another try, after `wait_seconds` at least; `billed` says whether the failed one may be billed.

    `refused`: the server has no room now, for nobody.
    """

    def __init__(self, reason: str, billed: bool, wait_seconds: float = 0.0, refused: bool = False) -> None:
        super().__init__(reason)
        self.billed = billed
        self.wait_seconds = wait_seconds
        self.refused = refused


class MalformedError(FailedTryError):
    """A body that is not what the API promises."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, billed=True)


@dataclass(frozen=True)
class Wire:
    """The part of the settings that shapes requests; its values are part of the engine's name."""

    model: str
    dialect: str = "openai"
    max_tokens_name: str = "max_tokens"
    send_temperature: bool = True
    strict_schema: bool = True
    logprobs: bool = False
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def request(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> tuple[str, dict[str, Any]]:
        """Path and body of a completion."""
        body: dict[str, Any] = {"model": self.model}
        if prompt.messages:
            path, limit = "/chat/completions", self.max_tokens_name
            body |= self.turns(prompt.messages, prompt.text)
        else:
            path, limit = "/completions", "max_tokens"
            body["prompt"] = prompt.text
        body[limit] = sampling.max_tokens
        if self.send_temperature:
            body["temperature"] = sampling.temperature
        if sampling.temperature > 0:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self.logprobs:
            body["logprobs"] = True if prompt.messages else 1
        return path, body | (self._bound(grammar) if grammar else {}) | dict(self.extra_body)

    def turns(self, messages: Sequence[Mapping[str, Any]], begun: str) -> dict[str, Any]:
        """Chat messages, with the begun answer as the last turn where there is one."""
        turns = [dict(message) for message in messages]
        if not begun:
            return {"messages": turns}
        return {"messages": [*turns, {"role": "assistant", "content": begun}]} | CONTINUING.get(self.dialect, {})

    def binds(self, grammar: Grammar) -> bool:
        """Whether a server of this dialect can be held to the grammar."""
        if grammar.kind == "json_schema" or self.dialect in ("vllm", "sglang"):
            return True
        return self.dialect == "llama_server" and grammar.kind == "ebnf"

    def _bound(self, grammar: Grammar) -> dict[str, Any]:
        """Empty where the server cannot be told: then the answer is free, and who asked reads it with care."""
        if not self.binds(grammar):
            return {}
        if grammar.kind == "json_schema":
            schema = {"name": "answer", "schema": json.loads(grammar.text), "strict": self.strict_schema}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        if self.dialect == "vllm":
            return {"structured_outputs": {"regex" if grammar.kind == "regex" else "grammar": grammar.text}}
        return {grammar.kind: grammar.text} if self.dialect == "sglang" else {"grammar": grammar.text}

    def read(self, body: Any, prompt: Prompt, seconds: float = 0.0) -> Completion:
        """The completion in a response's body. Raises MalformedError."""
        try:
            choice = body["choices"][0]
            text = choice["message"]["content"] if prompt.messages else choice["text"]
            usage = body.get("usage") or {}
            details = usage.get("prompt_tokens_details") or {}
            cached = details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0
            tokens_in, tokens_out = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            tokens_cached = int(cached)
            logprob = _sum_of_logprobs(choice.get("logprobs"))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise MalformedError(f"a body without {error}") from error
        if not isinstance(text, str | None):
            raise MalformedError(f"a text that is {type(text).__name__}")
        text = text or ""
        if prompt.messages and prompt.text and self.dialect not in CONTINUING:
            text = text.removeprefix(prompt.text)
        finish: Literal["stop", "length", "error"] = "stop"
        if choice.get("finish_reason") in ("length", "content_filter"):
            finish = "length" if choice["finish_reason"] == "length" else "error"
        return Completion(text, tokens_in, tokens_out, tokens_cached, seconds, logprob, finish)


def _sum_of_logprobs(block: Any) -> float | None:
    if not block:
        return None
    if block.get("content") is not None:
        return float(sum(token["logprob"] for token in block["content"]))
    if block.get("token_logprobs") is not None:
        return float(sum(value for value in block["token_logprobs"] if value is not None))
    return None


def read_prompt_scores(body: Any, begin: Sequence[int], whole: Sequence[int], top: int) -> TokenScores:
    """Scores of the tokens of `whole` that follow the common start with `begin`, from vLLM's `prompt_logprobs`.

    Raises MalformedError.
    """
    try:
        entries = body.get("prompt_logprobs") or body["choices"][0]["prompt_logprobs"]
        usage = body.get("usage") or {}
        read, written = int(usage.get("prompt_tokens") or len(whole)), int(usage.get("completion_tokens") or 1)
        if len(entries) != len(whole):
            raise MalformedError(f"{len(entries)} scores for {len(whole)} tokens")
        start = next((at for at, pair in enumerate(zip(begin, whole, strict=False)) if pair[0] != pair[1]), len(begin))
        tokens = np.asarray(whole[start:], dtype=np.int64)
        ids = np.zeros((len(tokens), top), dtype=np.int64)
        logprobs = np.full((len(tokens), top), -np.inf, dtype=np.float32)
        own = np.zeros(len(tokens), dtype=np.float32)
        for row, (token, entry) in enumerate(zip(whole[start:], entries[start:], strict=True)):
            scored = {int(id_): float(value["logprob"]) for id_, value in entry.items()}
            own[row] = scored[token]
            best = sorted(scored, key=lambda id_: -scored[id_])[:top]
            if len(best) < top:
                raise MalformedError(f"{len(best)} tokens at a place where {top} were asked for")
            ids[row], logprobs[row] = best, [scored[id_] for id_ in best]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise MalformedError(f"prompt_logprobs without {error}") from error
    return TokenScores(tokens, ids, logprobs, own, read, written)
