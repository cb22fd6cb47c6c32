"""The engine behind an OpenAI-compatible server: many requests at a time, or a batch of the provider's own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from supertiny.core.errors import UserError
from supertiny.core.payments import Unrecorded
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.engines._openai_batches import Asked, Batches
from supertiny.engines._openai_calls import Account, Caller, Limits, Session
from supertiny.engines._openai_refusals import API_ADDRESS
from supertiny.engines._openai_wire import MalformedError, Wire, read_prompt_scores


@dataclass(frozen=True)
class BatchTerms:
    """How a provider's batch API is used."""

    discount: float = 0.5
    """Share of the full price that the engine's price is."""
    poll_seconds: float = 30.0


class ServerEngine:
    """Sends prompts to a server. Not for use from within a running event loop of the same thread."""

    def __init__(
        self,
        name: str,
        base_url: str,
        key: str,
        wire: Wire,
        limits: Limits,
        price: Price,
        batch: BatchTerms | None = None,
    ) -> None:
        self.name = name
        self.caller = Caller(base_url, key, wire.model, limits)
        self._wire = wire
        self._batch = batch
        self._understood = False
        self.price = price

    @property
    def at_once(self) -> ServerEngine:
        """The same engine without the provider's batches, at the full price."""
        if self._batch is None:
            return self
        caller = self.caller
        price = self.price.times(1 / self._batch.discount)
        single = ServerEngine(self.name, caller.base_url, "", self._wire, caller.limits, price)
        single.caller = caller
        return single

    def binds(self, grammar: Grammar) -> bool:
        """Whether a completion can be kept to the grammar; where not, it is free."""
        return self._wire.binds(grammar)

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order.

        Raises UserError where the server refuses, is not there, or stays busy; requests that are under way then are
        waited for, so that `done` hears of all that was paid.
        """
        return self.complete_paid(prompts, sampling, grammar, done or _nothing, Unrecorded())

    def complete_paid(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None,
        done: Done,
        payments: Account,
    ) -> list[Completion]:
        """As `complete`, with an account that is asked before each try and may say that the budget is reached."""
        bounds = list(grammar) if grammar is not None else [None] * len(prompts)
        asked = [self._wire.request(prompt, sampling, bound) for prompt, bound in zip(prompts, bounds, strict=True)]
        if not asked:
            return []
        read: dict[int, Completion] = {}

        def tell(index: int, body: Any, seconds: float = 0.0) -> None:
            read[index] = self._wire.read(body, prompts[index], seconds)
            done(index, read[index])
            if self._wire.logprobs and read[index].logprob is None and read[index].text:
                raise UserError(
                    f"{self.caller.base_url}: {self._wire.model} gives no log-probabilities",
                    "set logprobs: false, and leave out steps that need them",
                )

        # What a killed run left in batches is read first: it is paid.
        if self._batch or any(payments.batch_of(index) for index in range(len(asked))):
            asyncio.run(self._by_batches(asked, payments, tell))
        left = [index for index in range(len(asked)) if index not in read]

        async def one(session: Session, place: int) -> None:
            index = left[place]
            path, body = asked[index]
            url = self.caller.base_url + path

            def send(client: httpx.AsyncClient, headers: Any) -> Any:
                return client.post(url, json=body, headers=headers)

            def hear(response: httpx.Response, seconds: float) -> Any:
                got = self.caller.json_of(response)
                self._check_shape(got, url)
                self._wire.read(got, prompts[index], seconds)  # MalformedError belongs to this try
                return got, seconds

            tell(index, *await self.caller.ask(session, index, url, send, hear, paid=True))

        if left:
            asyncio.run(self.caller.gather(len(left), one, payments))
        return [read[index] for index in range(len(asked))]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        """Log-probabilities of each continuation; of the servers, vLLM can.

        Raises UserError for another dialect.
        """
        if self._wire.dialect != "vllm":
            raise UserError(
                f"a server of dialect {self._wire.dialect!r} cannot score a given text",
                "take a vLLM server with dialect: vllm, or the engine openvino, torch or llama_cpp",
            )
        pairs = list(zip(prompts, continuations, strict=True))

        async def one(session: Session, index: int) -> TokenScores:
            prompt, text = pairs[index]
            begin = await self._tokens(session, index, prompt, "")
            whole = await self._tokens(session, index, prompt, text)
            body = {**self._told(prompt, text), "max_tokens": 1, "temperature": 0, "prompt_logprobs": max(top, 1)}
            url = self.caller.base_url + ("/chat/completions" if prompt.messages else "/completions")
            return await self.caller.ask(
                session,
                index,
                url,
                lambda client, headers: client.post(url, json=body, headers=headers),
                lambda got, _: read_prompt_scores(self.caller.json_of(got), begin, whole, max(top, 1)),
                paid=False,
            )

        return asyncio.run(self.caller.gather(len(pairs), one, Unrecorded())) if pairs else []

    def close(self) -> None:
        """Nothing to free: connections live as long as their batch."""

    def _check_shape(self, got: Any, url: str) -> None:
        """What has never answered as an API is none; what has, and does not now, is worth another try."""
        self._understood = self._understood or (isinstance(got, dict) and "choices" in got)
        if not self._understood:
            raise UserError(f"{url} answers, but not with a completion: {str(got)[:100]}", API_ADDRESS)

    async def _by_batches(self, asked: Sequence[Asked], payments: Account, tell: Any) -> None:
        terms = self._batch or BatchTerms()
        batches = Batches(self.caller, terms.poll_seconds)
        if self._batch:
            await batches.run(asked, payments, tell)
            return
        async with self.caller.session(payments) as session:
            await batches.collect(session, range(len(asked)), tell)

    def _told(self, prompt: Prompt, text: str) -> dict[str, Any]:
        begun = prompt.text + text
        said = self._wire.turns(prompt.messages, begun) if prompt.messages else {"prompt": begun}
        return {"model": self._wire.model} | said

    async def _tokens(self, session: Session, index: int, prompt: Prompt, text: str) -> list[int]:
        def read(response: httpx.Response, _: float) -> list[int]:
            try:
                return [int(token) for token in self.caller.json_of(response)["tokens"]]
            except (KeyError, TypeError, ValueError) as error:
                raise MalformedError(f"tokens without {error}") from error

        # vLLM keeps this one beside the versioned API, not in it.
        url = f"{self.caller.base_url.removesuffix('/v1')}/tokenize"
        body = self._told(prompt, text)
        return await self.caller.ask(
            session, index, url, lambda client, headers: client.post(url, json=body, headers=headers), read, paid=False
        )


def _nothing(index: int, completion: Completion) -> None:
    return None
