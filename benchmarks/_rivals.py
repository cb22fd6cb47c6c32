"""One local chat server, driven by our client and by other projects' clients; each finds the server freshly started."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks._rival_driver import IN_FLIGHT, MAX_TOKENS, MODULES, PACKAGES
from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.protocols import Engine
from supertiny.core.records import Answer, Cost, Prompt, Request, Sampling
from supertiny.serve.batching import Batcher

_DRIVER = Path(__file__).with_name("_rival_driver.py")
_BATCH = 32


class Chat:
    """An engine as an answerer: each request's messages are completed, greedily, whatever they ask."""

    name = "chat"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        prompts = [Prompt(request.messages, shared=1) for request in requests]
        done = self.engine.complete(prompts, Sampling(MAX_TOKENS))
        return [Answer((), c.text, Cost(tokens_in=c.tokens_in, tokens_out=c.tokens_out)) for c in done]


@contextmanager
def served(engine: Engine) -> Iterator[str]:
    """The address of an OpenAI-compatible server on this machine; requests that wait are answered together."""
    batcher = Batcher(Chat(engine), batch=_BATCH, waiting=10_000, gather_seconds=0.02)

    async def chat(request: HttpRequest) -> JSONResponse:
        body = await request.json()
        if not any(message.get("content") for message in body["messages"]):  # one client looks for limits so
            return JSONResponse({"error": {"message": "there is no message"}}, 400)
        answer = await batcher.answer(Request("", tuple(body["messages"])))
        usage = {"prompt_tokens": answer.cost.tokens_in, "completion_tokens": answer.cost.tokens_out}
        message = {"role": "assistant", "content": answer.text}
        return JSONResponse(
            {
                "id": "chat",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body.get("model", ""),
                "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
                "usage": {**usage, "total_tokens": sum(usage.values())},
            }
        )

    @asynccontextmanager
    async def living(app: Starlette) -> Any:
        batcher.start()
        yield
        await batcher.stop()

    listening = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])], lifespan=living)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def drive(
    open_engine: Callable[[], Engine], prompts: Sequence[Prompt], model: str, python: Path | None
) -> tuple[dict[str, float], dict[str, str], list[str]]:
    """(requests a second of each client, versions of the others, lines on those without a figure)."""
    rates, versions, missing = {}, {}, []
    with _freshly_served(open_engine) as url:
        rates["supertiny"] = len(prompts) / ours(url, prompts, model)
    for name in MODULES:
        if not is_there(name, python):
            missing.append(f"{name}: not installed here; pip install {PACKAGES[name]}, or --rivals-python PYTHON")
            continue
        try:
            with _freshly_served(open_engine) as url:
                report = _driven(name, url, model, prompts, python)
        except UserError as error:  # such as one that must reach another server first: the others' figures stand
            missing.append(str(error))
            continue
        rates[name], versions[name] = len(prompts) / report["seconds"], report["version"]
    return rates, versions, missing


@contextmanager
def _freshly_served(open_engine: Callable[[], Engine]) -> Iterator[str]:
    """A server whose cache holds nothing: what an earlier client sent must not help a later one."""
    with contextlib.closing(open_engine()) as engine, served(engine) as url:
        yield url


def ours(url: str, prompts: Sequence[Prompt], model: str) -> float:
    """Seconds that our client takes for all prompts."""
    block = {"method": "openai", "model": model, "base_url": url, "concurrency": IN_FLIGHT, "timeout_seconds": 1200.0}
    with contextlib.closing(build("engines", block).open()) as client:
        started = time.perf_counter()
        client.complete(prompts, Sampling(MAX_TOKENS))
        return time.perf_counter() - started


def is_there(name: str, python: Path | None) -> bool:
    """Whether the Python can import the project."""
    look = f"import importlib.util as u; raise SystemExit(u.find_spec({MODULES[name].split('.')[0]!r}) is None)"
    return subprocess.run([python or sys.executable, "-c", look], capture_output=True, check=False).returncode == 0


def _driven(name: str, url: str, model: str, prompts: Sequence[Prompt], python: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "conversations.json", Path(folder) / "report.json"
        conversations = [[dict(message) for message in prompt.messages] for prompt in prompts]
        source.write_text(json.dumps(conversations, ensure_ascii=False), encoding="utf-8")
        command = [python or sys.executable, _DRIVER, name, url, model, source, target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no words"]
            raise UserError(f"{name} failed on the local server: {last[0]}", "see its documentation, or leave it out")
        report: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        if len(report["texts"]) != len(prompts):
            raise UserError(f"{name} gave {len(report['texts'])} answers to {len(prompts)} requests")
        return report
