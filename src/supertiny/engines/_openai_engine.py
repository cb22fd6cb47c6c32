"""The engine behind an OpenAI-compatible server: many requests at a time, patient with a busy server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import httpx

from supertiny.core.errors import UserError, nearest_word
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.engines._openai_waits import asked_wait, quota_pause
from supertiny.engines._openai_wire import MalformedError, Wire, read_prompt_scores

BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
LONGEST_BACKOFF_SECONDS = 60.0
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How hard a server is asked, and how often."""

    concurrency: int = 16
    timeout_seconds: float = 120.0
    retries: int = 6
    backoff_seconds: float = 0.5
    longest_wait_seconds: float = 180.0
    seed: int = 0


class _BusyError(Exception):
    """Worth another try, after `wait_seconds` at least."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _Batch:
    """What the requests of one batch share: the client, and the moment before which none may start."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.not_before = 0.0
        self.failed = False


class ServerEngine:
    """Sends prompts to a server. Not for use from within a running event loop of the same thread."""

    def __init__(self, name: str, base_url: str, key: str, wire: Wire, limits: Limits, price: Price) -> None:
        self.name = name
        self.price = price
        self._base_url = base_url
        self._key = key
        self._wire = wire
        self._limits = limits
        # Tests put a clock of their own here.
        self.sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
        self.clock: Callable[[], float] = time.monotonic

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
        bounds = list(grammar) if grammar is not None else [None] * len(prompts)
        asked = [self._wire.request(prompt, sampling, bound) for prompt, bound in zip(prompts, bounds, strict=True)]

        async def one(batch: _Batch, index: int) -> Completion:
            path, body = asked[index]
            answer = await self._ask(
                batch, index, path, body, lambda got, seconds: self._wire.read(got, prompts[index], seconds)
            )
            if done:
                done(index, answer)
            return answer

        return self._all(len(prompts), one)

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

        async def one(batch: _Batch, index: int) -> TokenScores:
            prompt, text = pairs[index]
            begin = await self._tokens(batch, index, prompt, "")
            whole = await self._tokens(batch, index, prompt, text)
            body = {**self._told(prompt, text), "max_tokens": 1, "temperature": 0, "prompt_logprobs": max(top, 1)}
            path = "/chat/completions" if prompt.messages else "/completions"
            return await self._ask(
                batch, index, path, body, lambda got, _: read_prompt_scores(got, begin, whole, max(top, 1))
            )

        return self._all(len(pairs), one)

    def close(self) -> None:
        """Nothing to free: connections live as long as their batch."""

    def _told(self, prompt: Prompt, text: str) -> dict[str, Any]:
        begun = prompt.text + text
        said = self._wire.turns(prompt.messages, begun) if prompt.messages else {"prompt": begun}
        return {"model": self._wire.model} | said

    async def _tokens(self, batch: _Batch, index: int, prompt: Prompt, text: str) -> list[int]:
        def read(got: Any, _: float) -> list[int]:
            try:
                return [int(token) for token in got["tokens"]]
            except (KeyError, TypeError, ValueError) as error:
                raise MalformedError(f"tokens without {error}") from error

        # vLLM keeps this one beside the versioned API, not in it.
        root = self._base_url.removesuffix("/v1")
        return await self._ask(batch, index, f"{root}/tokenize", self._told(prompt, text), read)

    def _all(self, count: int, one: Callable[[_Batch, int], Awaitable[T]]) -> list[T]:
        return asyncio.run(self._gather(count, one)) if count else []

    async def _gather(self, count: int, one: Callable[[_Batch, int], Awaitable[T]]) -> list[T]:
        results: dict[int, T] = {}
        errors: list[Exception] = []
        waiting = iter(range(count))
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        at_once = min(self._limits.concurrency, count)
        places = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        async with httpx.AsyncClient(headers=headers, timeout=self._limits.timeout_seconds, limits=places) as client:
            batch = _Batch(client)

            async def work() -> None:
                for index in waiting:
                    if batch.failed:
                        return
                    try:
                        results[index] = await one(batch, index)
                    except Exception as error:
                        batch.failed = True
                        errors.append(error)

            await asyncio.gather(*(work() for _ in range(at_once)))
        if errors:
            raise errors[0]
        return [results[index] for index in range(count)]

    async def _ask(
        self, batch: _Batch, index: int, path: str, body: dict[str, Any], read: Callable[[Any, float], T]
    ) -> T:
        """One request until it is answered. Raises UserError."""
        url = path if path.startswith("http") else self._base_url + path
        tries = self._limits.retries + 1
        for number in range(tries):
            await self._wait_for_turn(batch)
            started = self.clock()
            try:
                got = await self._post(batch, url, body)
                return read(got, self.clock() - started)
            except (_BusyError, MalformedError) as error:
                if number + 1 == tries or batch.failed:
                    raise UserError(
                        f"{url}: {error}; given up after {number + 1} tries",
                        "is the server well, and are base_url and timeout_seconds right? Run again: nothing is lost",
                    ) from error
                await self.sleep(self._wait(index, number, getattr(error, "wait_seconds", 0.0), url))
        raise AssertionError("the last try either returns or raises")

    def _wait(self, index: int, number: int, asked_seconds: float, url: str) -> float:
        if asked_seconds > self._limits.longest_wait_seconds:
            raise UserError(
                f"{url}: the server asks to wait {asked_seconds:.0f} seconds",
                "run again later, or raise longest_wait_seconds",
            )
        most = min(self._limits.backoff_seconds * 2**number, LONGEST_BACKOFF_SECONDS)
        # Drawn from zero up: clients that were refused together do not come back together.
        return asked_seconds + Random(f"{self._limits.seed}:{index}:{number}").uniform(0, most)

    async def _wait_for_turn(self, batch: _Batch) -> None:
        while (seconds := batch.not_before - self.clock()) > 0:
            await self.sleep(seconds)

    async def _post(self, batch: _Batch, url: str, body: dict[str, Any]) -> Any:
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                response = await batch.client.post(url, json=body)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _BusyError(f"no answer within {self._limits.timeout_seconds:g} seconds") from error
        except httpx.RequestError as error:
            raise _BusyError(f"{str(error) or type(error).__name__}") from error
        pause = min(quota_pause(response.headers), self._limits.longest_wait_seconds)
        batch.not_before = max(batch.not_before, self.clock() + pause)
        status = response.status_code
        if status in BUSY and "insufficient_quota" not in response.text:
            raise _BusyError(f"HTTP status {status}: {self._said(response)}", asked_wait(response.headers))
        if status == 404:
            raise await self._not_found(batch, response)
        if status != 200:
            raise self._refused(response)
        if _is_page(response):
            raise UserError(
                f"{url} answers with a web page", "base_url must be an API's address, such as http://HOST:8000/v1"
            )
        try:
            got = response.json()
        except ValueError as error:
            raise MalformedError(f"a body that is not JSON: {response.text[:80]!r}") from error
        if isinstance(got, dict) and got.get("error") and "choices" not in got:
            raise _BusyError(f"an error in place of an answer: {self._said(response)}")
        return got

    def _refused(self, response: httpx.Response) -> UserError:
        status, url = response.status_code, str(response.request.url)
        if status in (401, 403):
            state = "the key was refused" if self._key else "a key is wanted"
            return UserError(f"{url}: {state} (HTTP status {status}): {self._said(response)}", "see api_key_env")
        if 300 <= status < 400:
            to = response.headers.get("location", "elsewhere")
            return UserError(f"{url}: redirects to {to}; a key is not sent on", "set base_url to where the API is")
        return UserError(
            f"{url}: refused with HTTP status {status}: {self._said(response)}", "see the engine's settings"
        )

    async def _not_found(self, batch: _Batch, response: httpx.Response) -> UserError:
        url = str(response.request.url)
        try:
            listed = (await batch.client.get(f"{self._base_url}/models")).json()
            names = [str(entry["id"]) for entry in listed["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            hint = "base_url must be an API's address, such as http://HOST:8000/v1"
            what = "a web page" if _is_page(response) else self._said(response)
            return UserError(f"{url}: HTTP status 404: {what}", hint)
        if self._wire.model in names:
            return UserError(
                f"{url}: HTTP status 404: {self._said(response)}", "the server has the model, but not this path"
            )
        return UserError(
            f"{self._base_url} has no model {self._wire.model!r}", nearest_word(self._wire.model, names[:40])
        )

    def _said(self, response: httpx.Response) -> str:
        """The server's own words, on one line, short, and without the key, which some servers repeat."""
        try:
            body = response.json()
            error = body.get("error", body)
            words = str(error.get("message") or error) if isinstance(error, dict) else str(error)
        except (ValueError, AttributeError):
            words = "a web page" if _is_page(response) else response.text
        words = words.replace(self._key, "(key)") if self._key else words
        return " ".join(words.split())[:300] or "nothing said"


def _is_page(response: httpx.Response) -> bool:
    return "html" in response.headers.get("content-type", "") or response.text.lstrip()[:1] == "<"
