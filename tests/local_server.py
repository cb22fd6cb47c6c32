"""An OpenAI-compatible server on a loopback port before an engine of ours, speaking vLLM's dialect of grammars."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from supertiny.core.protocols import Engine
from supertiny.core.records import Grammar, Prompt, Sampling


def app_of(engine: Engine) -> FastAPI:
    app, lock = FastAPI(), threading.Lock()

    def answer(prompt: Prompt, body: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
        sampling = Sampling(
            body["max_tokens"], body.get("temperature", 0.0), body.get("seed", 0), tuple(body.get("stop", ()))
        )
        with lock:
            (done,) = engine.complete([prompt], sampling, [_grammar(body)])
        usage = {"prompt_tokens": done.tokens_in, "completion_tokens": done.tokens_out}
        rest = {"finish_reason": done.finish, "index": 0}
        return done.text, rest | {"logprob": done.logprob}, usage

    @app.post("/v1/chat/completions")
    def chat(body: dict[str, Any]) -> dict[str, Any]:
        text, rest, usage = answer(Prompt(tuple(body["messages"])), body)
        logprob = rest.pop("logprob")
        scores = None if logprob is None else {"content": [{"logprob": logprob}]}
        return {"choices": [{"message": {"content": text}, "logprobs": scores, **rest}], "usage": usage}

    @app.post("/v1/completions")
    def complete(body: dict[str, Any]) -> dict[str, Any]:
        text, rest, usage = answer(Prompt(text=body["prompt"]), body)
        logprob = rest.pop("logprob")
        scores = None if logprob is None else {"token_logprobs": [logprob]}
        return {"choices": [{"text": text, "logprobs": scores, **rest}], "usage": usage}

    return app


def _grammar(body: dict[str, Any]) -> Grammar | None:
    if "response_format" in body:
        return Grammar("json_schema", json.dumps(body["response_format"]["json_schema"]["schema"]))
    bound = body.get("structured_outputs", {})
    if "regex" in bound:
        return Grammar("regex", bound["regex"])
    return Grammar("ebnf", bound["grammar"]) if "grammar" in bound else None


@contextmanager
def served(engine: Engine) -> Iterator[str]:
    """Gives the address of the API, up to and with its version."""
    server = uvicorn.Server(uvicorn.Config(app_of(engine), port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
