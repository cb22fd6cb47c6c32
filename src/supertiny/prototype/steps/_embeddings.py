"""Vectors of texts from an OpenAI-compatible server, as an engine: its completions are vectors, written as text.

So they go through the run's ledger as all model calls do: each text is paid once, and within the budget.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.core.ledger import Ledger
from supertiny.core.payments import Payments
from supertiny.core.prices import price_of
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.engines._openai_calls import Caller, Session
from supertiny.engines._openai_wire import MalformedError
from supertiny.engines.openai import OpenAI
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.steps._neighbours import Vectors


@dataclass(frozen=True)
class Embedder:
    """Settings of a client for POST /embeddings."""

    model: str
    """The model's name on the server."""
    base_url: str = "https://api.openai.com/v1"
    """Address of the API, up to and with its version."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; without it requests go without a key."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time for one try of one request."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Tries after the first, where the server fails or is cut off."""
    dollars_per_million_in: float | None = None
    """Price of tokens, in place of the looked-up one."""

    def open(self) -> _Embeddings:
        """The engine; nothing is sent yet. Raises UserError where address, key or price is missing."""
        more = {"timeout_seconds": self.timeout_seconds, "retries": self.retries}
        client = OpenAI(self.model, self.base_url, self.api_key_env, **more)  # type: ignore[arg-type]
        return _Embeddings(Caller(client, client.key()), self.price())

    def price(self) -> Price:
        """What tokens cost. Raises UserError where nobody knows it."""
        if self.dollars_per_million_in is not None:
            return Price(dollars_per_million_in=self.dollars_per_million_in)
        price = price_of(self.model, self.base_url)
        if price is None:
            raise UserError(
                f"nobody knows the price of {self.model!r} at {self.base_url}",
                "set dollars_per_million_in in the embedder, or write ~/.config/supertiny/prices.yaml",
            )
        return price


def embedded(traces: Sequence[Trace], bench: Bench) -> tuple[list[Trace], Vectors]:
    """The traces with the price of their vectors, and the vectors (traces, d), of length 1; a zero stays zero."""
    prompts = [Prompt(text=trace.request.text or " ") for trace in traces]
    paid, done = bench.complete(traces, prompts, Sampling(max_tokens=0))
    rows = [np.frombuffer(base64.b64decode(one.text), dtype="<f4") for one in done]
    if len({len(row) for row in rows}) > 1:
        raise UserError(f"{bench.engine.name}: vectors of different lengths", "does the server still run this model?")
    vectors = np.stack(rows)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return paid, np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


class _Embeddings:
    """An engine whose completion of a text is the text's vector: float32, little end first, in base64."""

    def __init__(self, caller: Caller, price: Price) -> None:
        self.caller = caller
        self.name = f"embeddings:{caller.base_url}:{caller.settings.model}"
        self.price = price

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        """Raises UserError where the server refuses, stays busy, or answers with something else than vectors."""
        ledger = Ledger(Path(":memory:"))
        try:
            return ledger.wrap(self, "embedding").complete(prompts, sampling, grammar, done)
        finally:
            ledger.close()

    def complete_paid(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None,
        done: Done,
        payments: Payments,
    ) -> list[Completion]:
        """As `complete`, each text on its own, so that each try of it can be told to the account."""
        url = f"{self.caller.base_url}/embeddings"

        def read(response: httpx.Response, seconds: float) -> Completion:
            return _read(self.caller.json_of(response), seconds)

        async def one(session: Session, index: int) -> Completion:
            body = {"model": self.caller.settings.model, "input": prompts[index].text, "encoding_format": "float"}
            completion = await self.caller.post(session, index, url, body, read, paid=True)
            done(index, completion)
            return completion

        return asyncio.run(self.caller.gather(len(prompts), one, payments))

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        raise UserError(f"{self.name} gives vectors, no log-probabilities")

    def close(self) -> None:
        """Nothing is held open."""


def _read(got: Any, seconds: float) -> Completion:
    """The vector in a response's body. Raises MalformedError."""
    try:
        (row,) = got["data"]
        vector = np.asarray(row["embedding"], dtype="<f4")
        tokens = int((got.get("usage") or {}).get("prompt_tokens") or 0)  # some servers do not count
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedError(f"no vectors: {error}") from error
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise MalformedError("no vectors: a vector that is none")
    return Completion(base64.b64encode(vector.tobytes()).decode(), tokens_in=tokens, seconds=seconds)
