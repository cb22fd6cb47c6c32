"""Any OpenAI-compatible server: hosted models, vLLM, SGLang, llama-server.

Use when: the teacher is hosted, or runs on a server of yours with a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of
from supertiny.core.prices import price_of
from supertiny.core.records import Price
from supertiny.engines._openai_engine import Limits, ServerEngine
from supertiny.engines._openai_wire import Wire


@dataclass(frozen=True)
class OpenAI:
    """Settings of a client; the engine holds no connection between batches."""

    model: str
    """The model's name on the server."""
    base_url: str = "https://api.openai.com/v1"
    """Address of the API, up to and with its version."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; without it requests go without a key."""
    dialect: Literal["openai", "vllm", "sglang", "llama_server"] = "openai"
    """How the server is told of grammars and of a begun answer, beyond what OpenAI's own API knows."""
    concurrency: Annotated[int, Field(ge=1)] = 16
    """Requests under way at a time."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Longest time for one try of one request."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Tries after the first, where the server is busy, fails or is cut off."""
    backoff_seconds: Annotated[float, Field(ge=0)] = 0.5
    """Largest wait before the first retry; it doubles with each, and the wait itself is drawn from zero to it."""
    longest_wait_seconds: Annotated[float, Field(ge=0)] = 180.0
    """Where a server asks to wait longer than this, the run stops and says so."""
    seed: int = 0
    """Seed of the drawn waits."""
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit of a completion."""
    send_temperature: bool = True
    """False for reasoning models that refuse a temperature."""
    strict_schema: bool = True
    """Whether a JSON Schema is sent as strict; OpenAI's own server then refuses schemas with optional fields."""
    logprobs: bool = False
    """Whether log-probabilities of the written tokens are asked for."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of each request's body, such as `chat_template_kwargs`."""
    dollars_per_million_in: float | None = None
    """Price of prompt tokens, in place of the looked-up one; needs dollars_per_million_out too."""
    dollars_per_million_out: float | None = None
    """Price of written tokens, in place of the looked-up one."""
    dollars_per_million_cached: float | None = None
    """Price of prompt tokens that the server had cached; that of prompt tokens where unset."""
    price_file: str = ""
    """Dated prices, see core/prices.py; the user's own file where unset."""

    def open(self, model: Path | None = None) -> ServerEngine:
        """The engine; nothing is sent yet. Raises UserError where address, key or price is missing."""
        if model is not None:
            raise UserError(f"engine openai runs no local file; found {model}", "take openvino, llama_cpp or torch")
        self._check()
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and urlsplit(self.base_url).hostname == "api.openai.com":
            raise UserError(f"no key for {self.base_url}", f"export {self.api_key_env}=...")
        base_url = self.base_url.rstrip("/")
        wire = Wire(
            model=self.model,
            dialect=self.dialect,
            max_tokens_name=self.max_tokens_name,
            send_temperature=self.send_temperature,
            strict_schema=self.strict_schema,
            logprobs=self.logprobs,
            extra_body=self.extra_body,
        )
        limits = Limits(
            self.concurrency,
            self.timeout_seconds,
            self.retries,
            self.backoff_seconds,
            self.longest_wait_seconds,
            self.seed,
        )
        name = f"openai:{base_url}:{self.model}:{hash_of(vars(wire))}"
        return ServerEngine(name, base_url, key, wire, limits, self.price())

    def _check(self) -> None:
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UserError(f"engines.openai.base_url: not an address: {self.base_url!r}", "like http://HOST:8000/v1")
        if address.username or address.password:
            raise UserError("engines.openai.base_url: holds a key", f"put it into {self.api_key_env}")
        for name in ("concurrency", "timeout_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"engines.openai.{name}: must be positive; found {getattr(self, name)}")
        for name in ("retries", "backoff_seconds", "longest_wait_seconds"):
            if getattr(self, name) < 0:
                raise UserError(f"engines.openai.{name}: must not be negative; found {getattr(self, name)}")

    def price(self) -> Price:
        """What tokens cost. Raises UserError where nobody knows it."""
        if (self.dollars_per_million_in is None) != (self.dollars_per_million_out is None):
            raise UserError("engines.openai: dollars_per_million_in and dollars_per_million_out go together")
        if self.dollars_per_million_in is not None and self.dollars_per_million_out is not None:
            cached = self.dollars_per_million_cached
            cached = self.dollars_per_million_in if cached is None else cached
            return Price(self.dollars_per_million_in, self.dollars_per_million_out, cached)
        price = price_of(self.model, self.base_url, Path(self.price_file) if self.price_file else None)
        if price is None:
            raise UserError(
                f"nobody knows the price of {self.model!r} at {urlsplit(self.base_url).hostname}",
                "set dollars_per_million_in and dollars_per_million_out, or write ~/.config/supertiny/prices.yaml",
            )
        return price
