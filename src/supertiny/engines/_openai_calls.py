"""One request to a server until it is answered: many at a time, patient with a busy server, each try told before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from supertiny.core.errors import UserError
from supertiny.core.payments import Payments, Unrecorded
from supertiny.engines._openai_refusals import API_ADDRESS, is_page, not_found, refusal, said
from supertiny.engines._openai_waits import asked_wait, quota_pause
from supertiny.engines._openai_wire import MalformedError

BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# A gateway that gave up waiting does not know whether the model behind it went on.
_PERHAPS_BILLED = frozenset({408, 502, 504})
LONGEST_BACKOFF_SECONDS = 60.0
T = TypeVar("T")
Account = Payments | Unrecorded
Send = Callable[[httpx.AsyncClient, Mapping[str, str]], Awaitable[httpx.Response]]


@dataclass(frozen=True)
class Limits:
    """How hard a server is asked, and how often."""

    concurrency: int = 16
    timeout_seconds: float = 120.0
    retries: int = 6
    backoff_seconds: float = 0.5
    longest_wait_seconds: float = 180.0
    seed: int = 0


class BusyError(Exception):
    """Worth another try, after `wait_seconds` at least; `billed` says whether the failed one may be billed."""

    def __init__(self, reason: str, billed: bool, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.billed = billed
        self.wait_seconds = wait_seconds


class Session:
    """What the requests of one batch share: clients, account, and the moment before which none may start."""

    def __init__(self, clients: Sequence[httpx.AsyncClient], payments: Account) -> None:
        self.free = list(clients)
        self.payments = payments
        self.not_before = 0.0
        self.failed = False
        self.ended = asyncio.Event()

    def tell_ended(self) -> None:
        """A call has ended: those that wait for room in the budget look again."""
        self.ended.set()
        self.ended = asyncio.Event()


class Caller:
    """Sends requests to one server."""

    def __init__(self, base_url: str, key: str, model: str, limits: Limits) -> None:
        self.base_url = base_url
        self.limits = limits
        self._key = key
        self._model = model
        self._heard = False
        # Tests put a clock of their own here.
        self.sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
        self.clock: Callable[[], float] = time.monotonic

    async def gather(self, count: int, one: Callable[[Session, int], Awaitable[T]], payments: Account) -> list[T]:
        """Results of `one` for each index, in order, `concurrency` at a time.

        After the first error no further one begins; those under way are waited for, then the error is raised.
        """
        results: dict[int, T] = {}
        errors: list[Exception] = []
        waiting = iter(range(count))
        at_once = min(self.limits.concurrency, count)
        async with self.session(payments, at_once) as session:

            async def work() -> None:
                for index in waiting:
                    if session.failed:
                        return
                    try:
                        results[index] = await one(session, index)
                    except Exception as error:
                        session.failed = True
                        errors.append(error)
                    session.tell_ended()

            await asyncio.gather(*(work() for _ in range(at_once)))
        if errors:
            raise errors[0]
        return [results[index] for index in range(count)]

    @asynccontextmanager
    async def session(self, payments: Account, at_once: int = 1) -> AsyncIterator[Session]:
        """A session of so many clients; their connections are closed when its block ends.

        A client for each request under way: one client for all looks through all its connections at every turn.
        """
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        verify = httpx.create_ssl_context() if self.base_url.startswith("https") else False
        seconds = self.limits.timeout_seconds
        async with AsyncExitStack() as opened:
            clients = [
                await opened.enter_async_context(httpx.AsyncClient(headers=headers, timeout=seconds, verify=verify))
                for _ in range(at_once)
            ]
            yield Session(clients, payments)

    async def ask(
        self, session: Session, index: int, url: str, send: Send, read: Callable[[httpx.Response, float], T], paid: bool
    ) -> T:
        """One request until it is answered; every try of a paid one is told to the session's account.

        Raises UserError, among them BudgetReached.
        """
        payments = session.payments if paid else None
        malformed = 0
        for number in range(self.limits.retries + 1):
            await self._wait_for_turn(session, payments)
            key = await self._allowed(session, index) if payments else ""
            started = self.clock()
            try:
                response = await self._try(session, url, send, {"Idempotency-Key": key} if key else {}, payments)
                return read(response, self.clock() - started)
            except BusyError as error:
                reason, stuck = error, False
            except MalformedError as error:
                malformed += 1
                reason, stuck = BusyError(str(error), billed=True), malformed > 1
            except UserError:
                if payments:
                    payments.end(index, billed=False)
                raise
            if payments:
                # A provider that keeps answers by key would give the same broken one for ever.
                payments.end(index, reason.billed, new_key=stuck)
                session.tell_ended()
            if number == self.limits.retries or session.failed:
                raise UserError(
                    f"{url}: {reason}; given up after {number + 1} tries",
                    "is the server well, and are base_url and timeout_seconds right? Run again: nothing is lost",
                ) from reason
            seconds = self._wait(index, number, reason.wait_seconds, url)
            await self.sleep(min(seconds, max(0.0, payments.seconds_left())) if payments else seconds)
        raise AssertionError("the last try either returns or raises")

    async def _allowed(self, session: Session, index: int) -> str:
        """The key of the next try; waits while other calls under way hold what is left of the budget."""
        while True:
            if session.failed:
                raise UserError("stopped, as another call failed")
            ended = session.ended
            key = session.payments.begin(index)
            if key is not None:
                return key
            await ended.wait()

    def _wait(self, index: int, number: int, asked_seconds: float, url: str) -> float:
        if asked_seconds > self.limits.longest_wait_seconds:
            raise UserError(
                f"{url}: the server asks to wait {asked_seconds:.0f} seconds",
                "run again later, or raise longest_wait_seconds",
            )
        most = min(self.limits.backoff_seconds * 2**number, LONGEST_BACKOFF_SECONDS)
        # Drawn from zero up: clients that were refused together do not come back together.
        return asked_seconds + Random(f"{self.limits.seed}:{index}:{number}").uniform(0, most)

    async def _wait_for_turn(self, session: Session, payments: Account | None) -> None:
        while (seconds := session.not_before - self.clock()) > 0:
            left = payments.seconds_left() if payments else seconds
            if left <= 0:
                return  # asking for the next try says so
            await self.sleep(min(seconds, left))

    async def _try(
        self, session: Session, url: str, send: Send, headers: Mapping[str, str], payments: Account | None
    ) -> httpx.Response:
        """A response with status 200 that is no web page. Raises BusyError, or UserError where a try mends nothing."""
        seconds = self.limits.timeout_seconds
        seconds = min(seconds, max(0.0, payments.seconds_left())) if payments else seconds
        client = session.free.pop()
        try:
            async with asyncio.timeout(seconds):
                response = await send(client, headers)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if not self._heard:
                where = urlsplit(url).netloc
                raise UserError(
                    f"{url}: no server answers at {where}: {error}", f"is it running? {API_ADDRESS}"
                ) from error
            raise BusyError(f"{str(error) or type(error).__name__}", billed=False) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise BusyError(f"no answer within {seconds:g} seconds", billed=True) from error
        except httpx.RequestError as error:
            raise BusyError(f"{str(error) or type(error).__name__}", billed=True) from error
        finally:
            session.free.append(client)
        self._heard = True
        pause = min(quota_pause(response.headers), self.limits.longest_wait_seconds)
        session.not_before = max(session.not_before, self.clock() + pause)
        return await self._judged(session, response)

    async def _judged(self, session: Session, response: httpx.Response) -> httpx.Response:
        status = response.status_code
        if status in BUSY and "insufficient_quota" not in response.text:
            words = f"HTTP status {status}: {said(response, self._key)}"
            raise BusyError(words, status in _PERHAPS_BILLED, asked_wait(response.headers))
        if status == 404:
            raise not_found(response, self._key, self._model, await self._models(session))
        if status != 200:
            raise refusal(response, self._key)
        if is_page(response):
            raise UserError(f"{response.request.url} answers with a web page", API_ADDRESS)
        return response

    def json_of(self, response: httpx.Response) -> Any:
        """The body. Raises MalformedError, or BusyError where an error came in place of an answer."""
        try:
            got = response.json()
        except ValueError as error:
            raise MalformedError(f"a body that is not JSON: {response.text[:80]!r}") from error
        if isinstance(got, dict) and got.get("error") and "choices" not in got:
            raise BusyError(f"an error in place of an answer: {said(response, self._key)}", billed=False)
        return got

    async def _models(self, session: Session) -> list[str] | None:
        try:
            listed = (await session.free[-1].get(f"{self.base_url}/models")).json()
            return [str(entry["id"]) for entry in listed["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None
