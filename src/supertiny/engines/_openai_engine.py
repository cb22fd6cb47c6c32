"""The engine behind an OpenAI-compatible server: many requests at a time, or a batch of the provider's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of
from supertiny.core.ledger import Ledger
from supertiny.core.payments import PaidCall, Payments
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.engines._openai_batches import Batches
from supertiny.engines._openai_calls import Caller, Session
from supertiny.engines._openai_refusals import API_ADDRESS
from supertiny.engines._openai_wire import MalformedError, Wire, read_prompt_scores

if TYPE_CHECKING:
    from supertiny.engines.openai import OpenAI


class ServerEngine:
    """Sends prompts to a server. Not for use from within a running event loop of the same thread."""

    def __init__(self, settings: OpenAI, key: str, price: Price) -> None:
        self.caller = Caller(settings, key)
        self.price = price
        self.batch_price = price if settings.batch else price.times(settings.batch_discount)
        self.more_tokens = len(json.dumps(dict(settings.extra_body)).encode()) if settings.extra_body else 0
        self._settings = settings
        self._in_batches = settings.batch
        self._understood = False
        self._wire = Wire(
            model=settings.model,
            dialect=settings.dialect,
            max_tokens_name=settings.max_tokens_name,
            send_temperature=settings.send_temperature,
            strict_schema=settings.strict_schema,
            logprobs=settings.logprobs,
            extra_body=settings.extra_body,
        )
        self.name = f"openai:{self.caller.base_url}:{settings.model}:{hash_of(vars(self._wire))}"

    @property
    def at_once(self) -> ServerEngine:
        """The same engine without the provider's batches, at the full price."""
        single = copy(self)
        single._in_batches = False
        single.price = self.price.times(1 / self._settings.batch_discount) if self._in_batches else self.price
        return single

    def binds(self, grammar: Grammar) -> bool:
        """Whether completions can be held to the grammar; engines that do not say can be held to any."""
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
        bounds = grammar if grammar is not None else [None] * len(prompts)
        calls = [PaidCall(str(index), *call) for index, call in enumerate(zip(prompts, bounds, strict=True))]
        ledger = Ledger(Path(":memory:"))
        payments = Payments(ledger, self, "", calls, sampling)

        def told(index: int, completion: Completion) -> None:
            payments.store(index, replace(completion, text=""))
            if done:
                done(index, completion)

        try:
            return self.complete_paid(prompts, sampling, grammar, told, payments)
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
        """As `complete`, with an account that is asked before each try and may say that the budget is reached."""
        bounds = grammar if grammar is not None else [None] * len(prompts)
        asked = [self._wire.request(prompt, sampling, bound) for prompt, bound in zip(prompts, bounds, strict=True)]
        read: dict[int, Completion] = {}

        def keep(index: int, completion: Completion) -> None:
            read[index] = completion
            done(index, completion)
            if self._wire.logprobs and completion.logprob is None and completion.text:
                raise UserError(
                    f"{self.caller.base_url}: {self._wire.model} gives no log-probabilities",
                    "set logprobs: false, and leave out steps that need them",
                )

        # What a killed run left in batches is read first: it is paid.
        if self._in_batches or any(payments.batch_of(index) for index in range(len(asked))):
            batches = Batches(self.caller, payments, lambda i, body: keep(i, self._wire.read(body, prompts[i])))
            asyncio.run(batches.run(asked, self._in_batches))
        left = [index for index in range(len(asked)) if index not in read]

        async def one(session: Session, place: int) -> None:
            index = left[place]
            path, body = asked[index]
            url = self.caller.base_url + path

            def hear(response: httpx.Response, seconds: float) -> Completion:
                got = self.caller.json_of(response)
                self._check_shape(got, url)
                return self._wire.read(got, prompts[index], seconds)

            keep(index, await self.caller.post(session, index, url, body, hear, paid=True))

        asyncio.run(self.caller.gather(len(left), one, payments))
        return [read[index] for index in range(len(asked))]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        """Log-probabilities of each continuation; of the servers, vLLM can. Outside any account.

        Raises UserError for another dialect.
        """
        return self.score_paid(prompts, continuations, top, lambda index, scores: None, None)

    def score_paid(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[str],
        top: int,
        done: Callable[[int, TokenScores], None],
        payments: Payments | None,
    ) -> list[TokenScores]:
        """As `score`, with an account that is asked before each try; `done` hears of each as soon as it is there."""
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

            def read(response: httpx.Response, _: float) -> TokenScores:
                return read_prompt_scores(self.caller.json_of(response), begin, whole, max(top, 1))

            scores = await self.caller.post(session, index, url, body, read, paid=payments is not None)
            done(index, scores)
            return scores

        return asyncio.run(self.caller.gather(len(pairs), one, payments))

    def close(self) -> None:
        """Nothing to free: connections live as long as their batch."""

    def _check_shape(self, got: Any, url: str) -> None:
        """What has never answered as an API is none; what has, and does not now, is worth another try."""
        self._understood = self._understood or (isinstance(got, dict) and "choices" in got)
        if not self._understood:
            raise UserError(f"{url} answers, but not with a completion: {self.caller.shown(got, 100)}", API_ADDRESS)

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
        return await self.caller.post(session, index, url, self._told(prompt, text), read)
