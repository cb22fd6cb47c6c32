"""Vectors of texts from an OpenAI-compatible server, as an engine: its completions are vectors, written as text.

So they go through the run's ledger as all model calls do: each text is paid once, and within the budget.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field

from supertiny.core.errors import UserError
from supertiny.core.prices import price_of
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.steps._neighbours import Vectors, unit

if TYPE_CHECKING:
    import httpx

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_BATCH = 64  # texts of one request
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Embedder:
    """Settings of a client for POST /embeddings."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str
    """The model's name on the server."""
    base_url: str = "https://api.openai.com/v1"
    """Address of the API, up to and with its version."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; without it requests go without a key."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time for one try of one request."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Tries after the first, where the server is busy or cannot be reached."""
    backoff_seconds: Annotated[float, Field(ge=0)] = 0.5
    """Largest wait before the first retry; it doubles with each."""
    dollars_per_million_in: float | None = None
    """Price of tokens, in place of the looked-up one."""

    def open(self) -> _Embeddings:
        """The engine; nothing is sent yet. Raises UserError where nobody knows the price."""
        price = price_of(self.model, self.base_url) if self.dollars_per_million_in is None else None
        if self.dollars_per_million_in is not None:
            price = Price(dollars_per_million_in=self.dollars_per_million_in)
        if price is None:
            raise UserError(
                f"nobody knows the price of {self.model!r} at {self.base_url}",
                "set dollars_per_million_in in the embedder, or write ~/.config/supertiny/prices.yaml",
            )
        return _Embeddings(self, price)


def embedded(traces: Sequence[Trace], bench: Bench) -> tuple[list[Trace], Vectors]:
    """The traces with the price of their vectors, and the vectors (traces, d), of length 1."""
    prompts = [Prompt(text=trace.request.text or " ") for trace in traces]
    paid, done = bench.complete(traces, prompts, Sampling(max_tokens=0))
    rows = [np.frombuffer(base64.b64decode(one.text), dtype="<f4") for one in done]
    if len({len(row) for row in rows}) > 1:
        raise UserError(f"{bench.engine.name}: vectors of different lengths", "does the server still run this model?")
    return paid, unit(np.stack(rows))


class _Embeddings:
    """An engine whose completion of a text is the text's vector: float32, little end first, in base64."""

    def __init__(self, settings: Embedder, price: Price) -> None:
        self._settings = settings
        self._url = settings.base_url.rstrip("/") + "/embeddings"
        self.name = f"embeddings:{self._url}:{settings.model}"
        self.price = price

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        """Raises UserError where the server refuses, stays busy, or answers with something else than vectors."""
        import httpx

        written: list[Completion] = []
        key = os.environ.get(self._settings.api_key_env, "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(headers=headers, timeout=self._settings.timeout_seconds) as client:
            for start in range(0, len(prompts), _BATCH):
                texts = [prompt.text for prompt in prompts[start : start + _BATCH]]
                for completion in self._ask(client, texts):
                    written.append(completion)
                    if done:
                        done(len(written) - 1, completion)
        return written

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        raise UserError(f"{self.name} gives vectors, no log-probabilities")

    def close(self) -> None:
        """Nothing is held open."""

    def _ask(self, client: httpx.Client, texts: Sequence[str]) -> list[Completion]:
        import httpx

        began = time.monotonic()
        problem = ""
        for number in range(self._settings.retries + 1):
            if number:
                most = min(self._settings.backoff_seconds * 2 ** (number - 1), _LONGEST_WAIT_SECONDS)
                time.sleep(Random(f"{texts[0]}:{number}").uniform(most / 2, most))
            try:
                got = client.post(self._url, json={"model": self._settings.model, "input": list(texts)})
            except httpx.RequestError as error:
                problem = str(error) or type(error).__name__
                continue
            if got.status_code in _BUSY:
                problem = f"HTTP status {got.status_code}"
                continue
            if got.status_code != 200:
                raise UserError(f"{self._url}: refused with HTTP status {got.status_code}", "see retrieve's embedder")
            try:
                return _read(got.json(), texts, time.monotonic() - began)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                problem = f"no vectors: {type(error).__name__}: {error}"
        raise UserError(f"{self._url}: {problem}; given up", "is base_url an API's address, and the server well?")


def _read(body: Any, texts: Sequence[str], seconds: float) -> list[Completion]:
    """One completion per text, the tokens of the batch shared out by length. Raises ValueError and its like."""
    rows = sorted(body["data"], key=lambda row: int(row["index"]))
    if [int(row["index"]) for row in rows] != list(range(len(texts))):
        raise ValueError(f"{len(rows)} vectors for {len(texts)} texts")
    tokens = int((body.get("usage") or {}).get("prompt_tokens") or 0)
    lengths = np.array([len(text.encode(errors="replace")) + 1 for text in texts])
    ends = np.rint(np.cumsum(lengths) / lengths.sum() * tokens).astype(int)
    shares = np.diff(ends, prepend=0)
    completions = []
    for row, share in zip(rows, shares, strict=True):
        vector = np.asarray(row["embedding"], dtype="<f4")
        if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
            raise ValueError("a vector that is none")
        text = base64.b64encode(vector.tobytes()).decode()
        completions.append(Completion(text, tokens_in=int(share), seconds=seconds / len(texts)))
    return completions
