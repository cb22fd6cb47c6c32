"""One request to a server until it is answered: many at a time, patient with a busy server, each try told before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx

from supertiny.core.errors import UserError
from supertiny.core.payments import Payments
from supertiny.engines._openai_refusals import (
    API_ADDRESS,
    is_page,
    not_found,
    refusal,
    said,
    shortened,
    without_key,
)
from supertiny.engines._openai_waits import asked_wait, quota_pause
from supertiny.engines._openai_wire import FailedTryError, MalformedError

if TYPE_CHECKING:
    from supertiny.engines.openai import OpenAI

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_NO_ROOM = frozenset({429, 503, 529})
# A gateway that gave up waiting does not know whether the model behind it went on.
_PERHAPS_BILLED = frozenset({408, 502, 504})
_LONGEST_BACKOFF_SECONDS, _LEAST_PAUSE_SECONDS = 60.0, 0.1
_CONNECTED_SECONDS = 15.0  # a server that is not there within them is not there
_TICK_SECONDS = 0.2  # of time that a kill may make forgotten
T = TypeVar("T")
Send = Callable[[httpx.AsyncClient, Mapping[str, str]], Awaitable[httpx.Response]]


class Session:
    """What the requests of one batch share: clients, account, and the moment before which none may start."""

    def __init__(self, clients: Sequence[httpx.AsyncClient], payments: Payments | None) -> None:
        self.free = list(clients)
        self.payments = payments
        self.not_before = 0.0
        self.pause_seconds = 0.0  # that a refusal brings; 0 where the last try was none
        self.refused_at = float("-inf")
        self.failed = False
        self.ended = asyncio.Event()

    def tell_ended(self) -> None:
        """A call has ended: those that wait for room in the budget look again."""
        self.ended.set()
        self.ended = asyncio.Event()

    def refuse(self, started: float, now: float, asked_seconds: float, first_seconds: float) -> None:
        """A try found no room: none begins for a while, which doubles with each refusal of one that had waited."""
        if started > self.refused_at:
            first_seconds = max(first_seconds, _LEAST_PAUSE_SECONDS)
            self.pause_seconds = min(2 * self.pause_seconds or first_seconds, _LONGEST_BACKOFF_SECONDS)
            self.refused_at = now
        self.not_before = max(self.not_before, now + asked_seconds + self.pause_seconds / 2)

    def answer(self, started: float) -> None:
        """A try was let in: there is room again, unless it went before the last refusal."""
        if started > self.refused_at:
            self.pause_seconds = 0.0


class Caller:
    """Sends requests to one server."""

    def __init__(self, settings: OpenAI, key: str) -> None:
        self.base_url = settings.base_url.rstrip("/")
        self.settings = settings
        self._key = key
        self._heard = False
        # Tests put a clock of their own here.
        self.sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
        self.clock: Callable[[], float] = time.monotonic

    async def gather(
        self, count: int, one: Callable[[Session, int], Awaitable[T]], payments: Payments | None = None
    ) -> list[T]:
        """Results of `one` for each index, in order, `concurrency` at a time.

        After the first error no further one begins; those under way are waited for, then the error is raised.
        """
        results: dict[int, T] = {}
        errors: list[Exception] = []
        waiting = iter(range(count))
        at_once = min(self.settings.concurrency, count)
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
    async def session(self, payments: Payments | None, at_once: int) -> AsyncIterator[Session]:
        """A session of so many clients; their connections are closed when its block ends, and till then time is kept.

        A client for each request under way: one client for all looks through all its connections at every turn.
        """
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        verify = httpx.create_ssl_context() if httpx.URL(self.base_url).scheme == "https" else False
        limits = httpx.Timeout(None, connect=_CONNECTED_SECONDS)  # `_try` ends what takes too long
        async with AsyncExitStack() as opened:
            clients = [
                await opened.enter_async_context(httpx.AsyncClient(headers=headers, timeout=limits, verify=verify))
                for _ in range(at_once)
            ]
            if payments is not None:
                keeping = asyncio.create_task(_keep_time(payments))
                opened.callback(keeping.cancel)
            yield Session(clients, payments)

    def shown(self, value: object, most: int = 300) -> str:
        """What may be shown of what a server said: short, and without the key."""
        return shortened(without_key(str(value), self._key), most)

    async def post(
        self,
        session: Session,
        index: int,
        url: str,
        body: Mapping[str, Any],
        read: Callable[[httpx.Response, float], T],
        paid: bool = False,
    ) -> T:
        """As `ask`, for a body of JSON."""

        def send(client: httpx.AsyncClient, headers: Mapping[str, str]) -> Awaitable[httpx.Response]:
            return client.post(url, json=body, headers=headers)

        return await self.ask(session, index, url, send, read, paid)

    async def ask(
        self,
        session: Session,
        index: int,
        url: str,
        send: Send,
        read: Callable[[httpx.Response, float], T],
        paid: bool = False,
    ) -> T:
        """One request until `read` gives what it makes of response and seconds; a paid one's tries are told before.

        A broken answer is asked for again under its key: a provider that honours it sends the answer anew, and bills
        it once. One that keeps what is broken would send that for ever, so where nothing else came, the last try has a
        new key; it may be paid a second time. A server without room is none that fails: for `longest_wait_seconds` in
        all its refusals are no tries. Raises UserError, among them BudgetReached.
        """
        payments, retries, broken = session.payments if paid else None, self.settings.retries, 0
        number, refusals, first_refused = 0, 0, float("inf")
        while True:
            await self._wait_for_turn(session, index, payments)
            key = await _allowed(session, payments, index) if payments else ""
            started = self.clock()
            try:
                response = await self._try(session, url, send, {"Idempotency-Key": key} if key else {}, payments)
                session.answer(started)
                return read(response, self.clock() - started)
            except FailedTryError as error:
                failed = error
            except UserError:
                if payments:
                    payments.end(index, billed=False)
                raise
            broken += isinstance(failed, MalformedError)
            if payments:
                payments.end(index, failed.billed, new_key=broken > number >= retries - 1)
                session.tell_ended()
            if failed.refused:
                session.refuse(started, self.clock(), self._asked(failed, url), self.settings.backoff_seconds)
                first_refused = min(first_refused, self.clock())
                if self.clock() < first_refused + self.settings.longest_wait_seconds and not session.failed:
                    refusals += 1
                    continue
            if number == retries or session.failed:
                raise self._given_up(url, failed, number + refusals + 1) from failed
            seconds = self._wait(index, number, failed, url)
            await self.sleep(min(seconds, max(0.0, payments.seconds_left())) if payments else seconds)
            number += 1

    def _given_up(self, url: str, failed: FailedTryError, tries: int) -> UserError:
        return UserError(
            f"{url}: {self.shown(failed)}; given up after {tries} tries",
            "is the server well, and are base_url and timeout_seconds right? Run again: nothing is lost",
        )

    def _asked(self, failed: FailedTryError, url: str) -> float:
        """Seconds that the server asks to wait. Raises UserError where they are too many."""
        if failed.wait_seconds > self.settings.longest_wait_seconds:
            raise UserError(
                f"{url}: the server asks to wait {failed.wait_seconds:.0f} seconds",
                "run again later, or raise longest_wait_seconds",
            )
        return failed.wait_seconds

    def _wait(self, index: int, number: int, failed: FailedTryError, url: str) -> float:
        most = min(self.settings.backoff_seconds * 2**number, _LONGEST_BACKOFF_SECONDS)
        # Drawn from zero up: clients that were refused together do not come back together.
        return self._asked(failed, url) + Random(f"{self.settings.seed}:{index}:{number}").uniform(0, most)

    async def _wait_for_turn(self, session: Session, index: int, payments: Payments | None) -> None:
        while (seconds := session.not_before - self.clock()) > 0 and not session.failed:
            spread = Random(f"{self.settings.seed}:{index}:{session.pause_seconds}").uniform(
                0, session.pause_seconds / 2
            )
            left = payments.seconds_left() if payments else seconds + spread
            if left <= 0:
                return  # asking for the next try says so
            await self.sleep(min(seconds + spread, left))

    async def _try(
        self, session: Session, url: str, send: Send, headers: Mapping[str, str], payments: Payments | None
    ) -> httpx.Response:
        """A response with status 200 that is no web page.

        Raises FailedTryError, or UserError where another try mends nothing.
        """
        seconds = self.settings.timeout_seconds
        seconds = min(seconds, max(0.0, payments.seconds_left())) if payments else seconds
        client = session.free.pop()
        try:
            async with asyncio.timeout(seconds):
                response = await send(client, headers)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            words = self.shown(error) or type(error).__name__
            if not self._heard:
                where = urlsplit(url).netloc
                raise UserError(
                    f"{url}: no server answers at {where}: {words}", f"is it running? {API_ADDRESS}"
                ) from error
            raise FailedTryError(words, billed=False) from error
        except TimeoutError as error:
            raise FailedTryError(f"no answer within {seconds:g} seconds", billed=True) from error
        except httpx.RequestError as error:
            raise FailedTryError(str(error) or type(error).__name__, billed=True) from error
        finally:
            session.free.append(client)
        self._heard = True
        pause = min(quota_pause(response.headers), self.settings.longest_wait_seconds)
        session.not_before = max(session.not_before, self.clock() + pause)
        return await self._judged(session, response)

    async def _judged(self, session: Session, response: httpx.Response) -> httpx.Response:
        status = response.status_code
        if status in _BUSY and "insufficient_quota" not in response.text:
            words = f"HTTP status {status}: {said(response, self._key)}"
            raise FailedTryError(words, status in _PERHAPS_BILLED, asked_wait(response.headers), status in _NO_ROOM)
        if status == 404:
            raise not_found(response, self._key, self.settings.model, await self._models(session))
        if status != 200:
            raise refusal(response, self._key)
        if is_page(response):
            raise UserError(f"{response.request.url} answers with a web page", API_ADDRESS)
        return response

    def json_of(self, response: httpx.Response) -> Any:
        """The body. Raises MalformedError, or FailedTryError where an error came in place of an answer."""
        try:
            got = response.json()
        except ValueError as error:
            raise MalformedError(f"a body that is not JSON: {self.shown(response.text, 80)!r}") from error
        if isinstance(got, dict) and got.get("error") and "choices" not in got:
            raise FailedTryError(f"an error in place of an answer: {said(response, self._key)}", billed=False)
        return got

    async def _models(self, session: Session) -> list[str] | None:
        try:
            url, seconds = f"{self.base_url}/models", self.settings.timeout_seconds
            listed = (await session.free[-1].get(url, timeout=seconds)).json()
            return [str(entry["id"]) for entry in listed["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None


async def _keep_time(payments: Payments) -> None:
    while True:
        payments.keep_time()
        await asyncio.sleep(_TICK_SECONDS)


async def _allowed(session: Session, payments: Payments, index: int) -> str:
    """The key of the next try; waits while other calls under way hold what is left of the budget."""
    while True:
        if session.failed:
            raise UserError("stopped, as another call failed")
        ended = session.ended
        key = payments.begin(index)
        if key is not None:
            return key
        await ended.wait()
