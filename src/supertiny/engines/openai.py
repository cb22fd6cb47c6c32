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

import httpx
from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.core.prices import price_of
from supertiny.core.records import Price
from supertiny.engines._openai_engine import ServerEngine

_COUNTED = frozenset({"max_tokens", "max_completion_tokens", "n", "best_of"})  # what an answer costs at most


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
    """How the server is told of grammars and of a begun answer; OpenAI's own API knows JSON Schemas alone."""
    concurrency: Annotated[int, Field(ge=1)] = 16
    """Requests under way at a time."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Longest time for one try of one request."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Tries after the first, where the server fails or is cut off; refusals for want of room are waited for."""
    backoff_seconds: Annotated[float, Field(ge=0)] = 0.5
    """Largest wait before the first retry; it doubles with each, and the wait itself is drawn from zero to it."""
    longest_wait_seconds: Annotated[float, Field(ge=0)] = 180.0
    """Where a server asks to wait longer than this, or refuses a request for longer, the run stops and says so."""
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
    context_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that the model reads; where it is set, `supertiny check` refuses rows that are longer."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of each request's body, such as `chat_template_kwargs`; none that says how much is written."""
    dollars_per_million_in: Annotated[float, Field(ge=0)] | None = None
    """Price of prompt tokens, in place of the looked-up one; needs dollars_per_million_out too."""
    dollars_per_million_out: Annotated[float, Field(ge=0)] | None = None
    """Price of written tokens, in place of the looked-up one."""
    dollars_per_million_cached: Annotated[float, Field(ge=0)] | None = None
    """Price of prompt tokens that the server had cached; that of prompt tokens where unset."""
    batch: bool = False
    """Whether prompts go through the provider's batch API: answers within a day, at a discount; raise `chunk` then."""
    batch_discount: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the price that the provider takes for answers of a batch."""
    price_file: str = ""
    """Dated prices, see core/prices.py; the user's own file where unset."""

    @property
    def serves(self) -> tuple[str, ...]:
        """What methods may ask of it by their `needs`: of the servers, vLLM scores given texts."""
        scores = ("token_scores", "best_tokens") if self.dialect == "vllm" else ()
        return (*scores, *(("logprobs",) if self.logprobs else ()))

    def open(self, model: Path | None = None) -> ServerEngine:
        """The engine; nothing is sent yet. Raises UserError where address, key or price is missing."""
        if model is not None:
            raise UserError(f"engine openai runs no local file; found {model}", "take openvino, llama_cpp or torch")
        return ServerEngine(self, self.key(), self.price())

    def key(self) -> str:
        """The key, empty where there is none. Raises UserError where it, or another setting, cannot be right."""
        self._check()
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and urlsplit(self.base_url).hostname == "api.openai.com":
            raise UserError(f"no key for {self.base_url}", f"export {self.api_key_env}=...")
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{self.api_key_env} holds characters that no key has", "copy the key again")
        return key

    def _check(self) -> None:
        try:
            address = httpx.URL(self.base_url)
        except httpx.InvalidURL:
            address = httpx.URL()
        if address.scheme not in ("http", "https") or not address.host:
            raise UserError(f"engines.openai.base_url: not an address: {self.base_url!r}", "like http://HOST:8000/v1")
        if address.userinfo:
            raise UserError("engines.openai.base_url: holds a key", f"put it into {self.api_key_env}")
        if counted := sorted(_COUNTED & set(self.extra_body)):
            hint = "steps say how long answers may be; the budget counts on it"
            raise UserError(f"engines.openai.extra_body: may not set {', '.join(counted)}", hint)

    def price(self) -> Price:
        """What tokens cost, at the discount where batches are on. Raises UserError where nobody knows it."""
        if (self.dollars_per_million_in is None) != (self.dollars_per_million_out is None):
            raise UserError("engines.openai: dollars_per_million_in and dollars_per_million_out go together")
        if self.dollars_per_million_in is not None and self.dollars_per_million_out is not None:
            cached = self.dollars_per_million_cached
            cached = self.dollars_per_million_in if cached is None else cached
            price: Price | None = Price(self.dollars_per_million_in, self.dollars_per_million_out, cached)
        else:
            price = price_of(self.model, self.base_url, Path(self.price_file) if self.price_file else None)
        if price is None:
            raise UserError(
                f"nobody knows the price of {self.model!r} at {urlsplit(self.base_url).hostname}",
                "set dollars_per_million_in and dollars_per_million_out, or write ~/.config/supertiny/prices.yaml",
            )
        return price.times(self.batch_discount) if self.batch else price
