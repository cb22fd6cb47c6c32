"""The endpoint: OpenAI's chat protocol, health and metrics over an answerer."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from supertiny.core.protocols import Answerer
from supertiny.core.records import Answer, Request, Tool
from supertiny.serve.batching import AnswerFailed, Batcher, Overloaded, Stopping
from supertiny.serve.metrics import CONTENT_TYPE, Metrics
from supertiny.serve.refusals import Refusal
from supertiny.serve.replies import Reply, json_bytes, reply_to
from supertiny.serve.routing import Routing, with_draft_cost
from supertiny.serve.schema import Chat, read_chat
from supertiny.serve.settings import Limits

_GONE = 499  # the client left before its answer; nobody reads this status but the metrics


def create_app(
    answerer: Answerer,
    model_name: str,
    tools: Sequence[Tool],
    limits: Limits | None = None,
    fallback: Answerer | None = None,
    routing: Routing | None = None,
    api_key: str | None = None,
    description: str = "",
) -> FastAPI:
    """The application. With an `api_key`, all but /healthz asks for it as a bearer token.

    `description` is the task's; a system message that repeats it is not put to the model.
    """
    endpoint = _Endpoint(answerer, model_name, tools, limits or Limits(), fallback, routing or Routing(), description)
    app = FastAPI(title="supertiny", docs_url=None, redoc_url=None, openapi_url=None, lifespan=endpoint.lifespan)
    guarded = APIRouter(dependencies=[Depends(_guard(api_key))] if api_key else [])
    guarded.add_api_route("/v1/chat/completions", endpoint.chat, methods=["POST"], response_model=None)
    guarded.add_api_route("/v1/models", endpoint.models, response_model=None)
    guarded.add_api_route("/v1/models/{name:path}", endpoint.model, response_model=None)
    guarded.add_api_route("/metrics", endpoint.measured, response_model=None)
    app.include_router(guarded)
    app.add_api_route("/healthz", endpoint.health, response_model=None)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _broken)
    return app


def _guard(api_key: str) -> Callable[[HttpRequest], None]:
    def check(http: HttpRequest) -> None:
        scheme, _, given = http.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1"), api_key.encode())
        if scheme.lower() != "bearer" or not same:
            raise Refusal(401, "the API key is missing or wrong", None, "invalid_api_key")

    return check


async def _refused(http: HttpRequest, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = Refusal(error.status_code, f"{http.method} {http.url.path}: {error.detail}", None, None, error.headers)
    assert isinstance(error, Refusal)
    return Response(json_bytes(error.body), error.status, error.headers, "application/json")


async def _broken(http: HttpRequest, error: Exception) -> Response:
    """A bug; the traceback goes to the log, nothing of it to the client."""
    return await _refused(http, _internal())


def _internal() -> Refusal:
    return Refusal(500, "the server failed on this request", None, "internal_error")


class _Endpoint:
    """Routes of one application, with the queues before its answerers."""

    def __init__(
        self,
        answerer: Answerer,
        model_name: str,
        tools: Sequence[Tool],
        limits: Limits,
        fallback: Answerer | None,
        routing: Routing,
        description: str,
    ) -> None:
        self._model_name = model_name
        self._description = description
        self._tools = {tool.name: tool for tool in tools}
        self._limits = limits
        self._routing = routing
        self._metrics = Metrics()
        sizes = (limits.batch, limits.waiting, limits.gather_seconds)
        self._draft = Batcher(answerer, *sizes, observe=self._metrics.batches.add)
        self._fallback = Batcher(fallback, *sizes) if fallback is not None else None
        self._metrics.queue_depth = lambda: self._draft.depth
        self._started = int(time.time())

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        lines = [line for line in (self._draft, self._fallback) if line is not None]
        for line in lines:
            line.start()
        warm_up = asyncio.create_task(self._probe())
        yield
        for line in lines:
            await line.stop()
        await warm_up

    async def chat(self, http: HttpRequest) -> Response:
        began = time.perf_counter()
        outcome = "failed"
        try:
            chat = await self._read(http)
            reply = await self._unless_gone(http, self._reply(chat))
            outcome = "call" if reply.calls else "text"
            return self._send(chat, reply)
        except Refusal as refusal:
            outcome = {429: "overloaded", _GONE: "gone"}.get(
                refusal.status, "failed" if refusal.status >= 500 else "refused"
            )
            raise
        finally:
            self._metrics.requests[outcome] += 1
            self._metrics.seconds.add(time.perf_counter() - began)

    async def _read(self, http: HttpRequest) -> Chat:
        limit = self._limits.body_bytes
        too_large = Refusal(413, f"the body is too large; at most {limit} bytes are taken", None, "body_too_large")
        length = http.headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > limit):
            raise too_large
        raw = bytearray()
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                async for part in http.stream():
                    raw += part
                    if len(raw) > limit:
                        raise too_large
        except TimeoutError:
            raise Refusal(408, "the body did not arrive in time", None, "timeout") from None
        except ClientDisconnect:
            raise Refusal(_GONE, "the client left") from None
        name = f"chatcmpl-{uuid.uuid4().hex}"
        return read_chat(bytes(raw), name, self._model_name, self._tools, self._limits, self._description)

    async def _unless_gone(self, http: HttpRequest, work: Any) -> Reply:
        """Waits for the reply; a client that leaves meanwhile takes its request out of the queue."""
        answering = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_disconnected(http))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise Refusal(_GONE, "the client left")
            reply: Reply = answering.result()
            return reply
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.wait({answering, leaving})

    async def _reply(self, chat: Chat) -> Reply:
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                answer, doubt = await self._answer(chat.request)
        except Overloaded as full:
            wait = str(full.retry_after_seconds)
            raise Refusal(429, f"{full}", None, "overloaded", {"Retry-After": wait}) from None
        except Stopping:
            raise Refusal(503, "the server is shutting down", None, "stopping") from None
        except TimeoutError:
            raise Refusal(504, "the model did not answer in time", None, "timeout") from None
        except AnswerFailed:
            raise _internal() from None
        return reply_to(chat, answer, doubt, self._model_name)

    async def _answer(self, request: Request) -> tuple[Answer, float]:
        """The answer that holds, and the doubt in the draft."""
        draft = await self._draft.answer(request)
        self._metrics.spend(draft.cost)
        doubt = self._routing.router.doubt(request, draft)
        if self._fallback is None or not self._routing.escalates(doubt):
            return draft, doubt
        self._metrics.escalations += 1
        try:
            better = await self._fallback.answer(request)
        except AnswerFailed:
            # The draft is in doubt, so it is not given out as if it were not.
            raise Refusal(502, "the fallback failed on this request", None, "fallback_failed") from None
        self._metrics.spend(better.cost)
        return with_draft_cost(better, draft), doubt

    def _send(self, chat: Chat, reply: Reply) -> Response:
        headers = {"x-request-id": reply.id}
        if chat.stream:
            return StreamingResponse(
                _each(reply.events(chat.stream_usage)),
                headers=headers | {"Cache-Control": "no-cache"},
                media_type="text/event-stream",
            )
        return Response(json_bytes(reply.completion), 200, headers, "application/json")

    async def models(self) -> Response:
        return _json({"object": "list", "data": [self._model_card]})

    async def model(self, name: str) -> Response:
        if name != self._model_name:
            problem = f"model {name[:100]!r} is not here; this server has {self._model_name!r}"
            raise Refusal(404, problem, "model", "model_not_found")
        return _json(self._model_card)

    @property
    def _model_card(self) -> dict[str, Any]:
        return {"id": self._model_name, "object": "model", "created": self._started, "owned_by": "supertiny"}

    async def measured(self) -> Response:
        return Response(self._metrics.text, media_type=CONTENT_TYPE)

    async def health(self) -> Response:
        """200 where the model answers; where it failed last, it is asked again."""
        if self._draft.healthy is False:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.request_seconds):
                    await self._probe()
        state = {True: "ok", False: "failing", None: "starting"}[self._draft.healthy]
        return _json({"status": state, "model": self._model_name}, 200 if self._draft.healthy else 503)

    async def _probe(self) -> None:
        with suppress(AnswerFailed, Overloaded, Stopping):  # the batcher keeps how it went, and the log why
            await self._draft.answer(Request.from_text("hello", "probe"))


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _each(events: Any) -> AsyncIterator[bytes]:
    for event in events:
        yield event


def _json(body: Any, status: int = 200) -> Response:
    return Response(json_bytes(body), status, media_type="application/json")
