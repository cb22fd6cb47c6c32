"""Requests that arrive together are answered together, by the one thread that owns the engine."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from supertiny.core.protocols import Answerer
from supertiny.core.records import Answer, Request

_log = logging.getLogger(__name__)


class Overloaded(Exception):
    """As many requests wait as may; `retry_after_seconds` is about when there is room again."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"the queue is full; room in about {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class Stopping(Exception):
    """The server is shutting down and takes no more requests."""


class AnswerFailed(Exception):
    """The answerer raised on this request; why stands in the log."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    request: Request
    future: asyncio.Future[Answer]


class Batcher:
    """A queue before an answerer. Made, started, asked and stopped on one event loop.

    An idle answerer waits `gather_seconds` for company of the first request; a busy one takes up to `batch` of what
    waits as soon as it is free. `observe(size)` is called with the size of each batch.
    """

    def __init__(
        self,
        answerer: Answerer,
        batch: int = 16,
        waiting: int = 256,
        gather_seconds: float = 0.002,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.healthy: bool | None = None
        """Whether the last batch was answered; None before the first."""
        self._answerer = answerer
        self._batch = batch
        self._waiting_limit = waiting
        self._gather_seconds = gather_seconds
        self._observe = observe
        self._queue: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"answer-{answerer.name}")
        self._work: asyncio.Task[None] | None = None
        self._stopping = False
        self._batch_seconds = 0.0

    @property
    def depth(self) -> int:
        """Requests that wait, those in the answerer's hands not counted."""
        return self._queue.qsize()

    def start(self) -> None:
        self._work = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """Answers what waits, takes nothing new, ends the thread."""
        self._stopping = True
        self._queue.put_nowait(None)
        if self._work is not None:
            await self._work
        self._thread.shutdown()

    async def answer(self, request: Request) -> Answer:
        """Raises Overloaded, Stopping or AnswerFailed. A caller that is cancelled leaves the queue."""
        if self._stopping:
            raise Stopping
        if self.depth >= self._waiting_limit:
            batches = math.ceil(self.depth / self._batch)
            raise Overloaded(max(1, math.ceil(batches * self._batch_seconds)))
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        return await waiting.future

    async def _serve(self) -> None:
        last = False
        while not last:
            idle = self._queue.empty()
            taken = [await self._queue.get()]
            if idle and self._queue.qsize() < self._batch - 1 and taken[0] is not None:
                await asyncio.sleep(self._gather_seconds)
            while len(taken) < self._batch and not self._queue.empty():
                taken.append(self._queue.get_nowait())
            last = None in taken
            await self._answer([one for one in taken if one is not None and not one.future.done()])

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        if not batch:
            return
        self._observe(len(batch))
        began = time.monotonic()
        try:
            answers = await self._ask([one.request for one in batch])
        except Exception:
            _log.exception("a batch of %d failed", len(batch))
            self.healthy = False
            await self._one_by_one(batch)
            return
        self._batch_seconds = time.monotonic() - began
        self.healthy = True
        for one, answer in zip(batch, answers, strict=True):
            if not one.future.done():
                one.future.set_result(answer)

    async def _one_by_one(self, batch: Sequence[_Waiting]) -> None:
        """After a failure: a request that breaks the answerer must not take its neighbours with it."""
        if len(batch) > 1:
            for one in batch:
                if not one.future.done():
                    await self._answer([one])
        elif not batch[0].future.done():
            batch[0].future.set_exception(AnswerFailed())

    async def _ask(self, requests: Sequence[Request]) -> list[Answer]:
        answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answerer.answer, requests)
        if len(answers) != len(requests):
            raise RuntimeError(f"{self._answerer.name} gave {len(answers)} answers to {len(requests)} requests")
        return answers
