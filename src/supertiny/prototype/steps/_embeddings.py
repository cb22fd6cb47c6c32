"""Vectors of texts from an OpenAI-compatible server, as an engine: its completions are vectors, written as text.

So they go through the run's ledger as all model calls do: each text is paid once, and within the budget.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import ConfigDict, Field

from supertiny.core.errors import UserError
from supertiny.core.prices import price_of
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.steps._neighbours import Vectors

if TYPE_CHECKING:
    from openai.types import CreateEmbeddingResponse

_BATCH = 64  # texts of one request


@dataclass(frozen=True)
class Embedder:
    """Settings of a client for POST /embeddings."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str
    """The model's name on the server."""
    base_url: str = "https://api.openai.com/v1"
    """Address of the API, up to and with its version."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a server that asks for none gets the word "none"."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time for one try of one request."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Tries after the first, where the server is busy or cannot be reached."""
    dollars_per_million_in: float | None = None
    """Price of tokens, in place of the looked-up one."""

    def open(self) -> _Embeddings:
        """The engine; nothing is sent yet. Raises UserError where nobody knows the price."""
        if self.dollars_per_million_in is not None:
            return _Embeddings(self, Price(dollars_per_million_in=self.dollars_per_million_in))
        price = price_of(self.model, self.base_url)
        if price is None:
            raise UserError(
                f"nobody knows the price of {self.model!r} at {self.base_url}",
                "set dollars_per_million_in in the embedder, or write ~/.config/supertiny/prices.yaml",
            )
        return _Embeddings(self, price)


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

    def __init__(self, settings: Embedder, price: Price) -> None:
        self._settings = settings
        self.name = f"embeddings:{settings.base_url.rstrip('/')}:{settings.model}"
        self.price = price

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        """Raises UserError where the server refuses, stays busy, or answers with something else than vectors."""
        import openai

        settings, written = self._settings, list[Completion]()
        key = os.environ.get(settings.api_key_env, "").strip() or "none"
        url, seconds, retries = settings.base_url, settings.timeout_seconds, settings.retries
        with openai.OpenAI(api_key=key, base_url=url, timeout=seconds, max_retries=retries) as client:
            for start in range(0, len(prompts), _BATCH):
                texts = [prompt.text for prompt in prompts[start : start + _BATCH]]
                began = time.monotonic()
                try:
                    got = client.embeddings.create(model=settings.model, input=texts, encoding_format="float")
                    completions = _read(got, texts, time.monotonic() - began)
                except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
                    hint = "is base_url an API's address, the key right, and the server well? See retrieve's embedder"
                    raise UserError(f"{self.name}: no vectors: {str(error) or type(error).__name__}", hint) from error
                for completion in completions:
                    written.append(completion)
                    if done:
                        done(len(written) - 1, completion)
        return written

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        raise UserError(f"{self.name} gives vectors, no log-probabilities")

    def close(self) -> None:
        """Nothing is held open."""


def _read(got: CreateEmbeddingResponse, texts: Sequence[str], seconds: float) -> list[Completion]:
    """One completion per text, the tokens of the batch shared out by length.

    Raises AttributeError, TypeError or ValueError where the server has answered with something else.
    """
    rows = sorted(got.data, key=lambda row: row.index)
    if [row.index for row in rows] != list(range(len(texts))):
        raise ValueError(f"{len(rows)} vectors for {len(texts)} texts")
    tokens = getattr(getattr(got, "usage", None), "prompt_tokens", None) or 0  # some servers do not count
    lengths = np.array([len(text.encode(errors="replace")) + 1 for text in texts])
    ends = np.rint(np.cumsum(lengths) / lengths.sum() * tokens).astype(int)
    completions = []
    for row, share in zip(rows, np.diff(ends, prepend=0), strict=True):
        vector = np.asarray(row.embedding, dtype="<f4")
        if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
            raise ValueError("a vector that is none")
        text = base64.b64encode(vector.tobytes()).decode()
        completions.append(Completion(text, tokens_in=int(share), seconds=seconds / len(texts)))
    return completions
