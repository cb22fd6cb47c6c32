"""A server over a real socket, with an answerer that needs no model and can be held."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from supertiny.core.records import Answer, Call, Cost, Request, Tool
from supertiny.serve.server import create_app, listen

TOOLS = tuple(
    Tool(name, name, {"type": "object", "properties": {"name": {"type": "string"}}}) for name in ("turn_on", "turn_off")
)


class Kitchen:
    """Calls turn_on with the text as its name; says hello to hello; breaks on boom. `open` lets answers out."""

    name = "kitchen"

    def __init__(self) -> None:
        self.batches: list[list[Request]] = []
        self.open = threading.Event()
        self.open.set()
        self.broken = False

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        self.batches.append(list(requests))
        assert self.open.wait(20)
        if self.broken or any("boom" in request.text for request in requests):
            raise RuntimeError("a secret of the engine")
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        cost = Cost(seconds=0.01, tokens_in=11, tokens_out=7, tokens_cached=3)
        if request.text.startswith("hello"):
            return Answer((), "no function serves", cost, self.name, 0.5)
        calls = [Call("turn_on", {"name": request.text})]
        if "both" in request.text:
            calls.append(Call("turn_off", {"name": request.text}))
        return Answer(tuple(calls), "", cost, self.name, 0.75)


class Served:
    """A running server."""

    def __init__(self, answerer: Any, settings: dict[str, Any]) -> None:
        self.kitchen = answerer
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        app = create_app(answerer, "home", TOOLS, **settings)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=10))
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=20, trust_env=False)
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="any", max_retries=0, http_client=httpx.Client(trust_env=False)
        )
        self.until(lambda: self.http.get("/healthz").json()["status"] != "starting" or not answerer.open.is_set())

    def until(self, reached: Callable[[], bool]) -> None:
        for _ in range(2000):
            if reached():
                return
            time.sleep(0.005)
        raise AssertionError("it was never reached")

    def post(self, text: str = "lights", **fields: Any) -> httpx.Response:
        body = {"model": "home", "messages": [{"role": "user", "content": text}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), 0.0)

    def stop(self) -> None:
        self.kitchen.open.set()
        self.server.should_exit = True
        self._thread.join(20)
        self.http.close()
        self.openai.close()
        assert not self._thread.is_alive()


@pytest.fixture
def start() -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start_one(answerer: Any = None, **settings: Any) -> Served:
        running.append(Served(answerer or Kitchen(), settings))
        return running[-1]

    yield start_one
    for served in running:
        served.stop()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    one = Served(Kitchen(), {})
    yield one
    one.stop()
