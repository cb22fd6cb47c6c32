"""An OpenAI-compatible server that fails in every way that servers do, and counts what it would bill.

Faults are drawn from the seed, the request and how often that request was seen, so that a run can be repeated. An
answer is billed when it is computed, whether or not it arrives: that is what providers do. With `honours_keys` a
request that comes again under the same `Idempotency-Key` gets the stored answer and is not billed again. What is stored
is whole: `cut` and `malformed` break an answer on its way.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from email import message_from_bytes
from functools import partial
from random import Random
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

# Share of each kind of fault: 26 % of the tries.
SHARES = {
    "busy": 0.04,
    "busy_with_wait": 0.03,
    "error": 0.04,
    "timeout": 0.02,
    "cut": 0.04,
    "malformed": 0.03,
    "wrong_tool": 0.03,
    "slow_first_byte": 0.03,
}
LOSING = ("timeout", "cut", "malformed")
"""Kinds after which a computed answer has not arrived whole."""
DOLLARS_PER_MILLION_IN, DOLLARS_PER_MILLION_OUT = 10.0, 40.0


@dataclass(frozen=True)
class Plan:
    """How the server behaves."""

    seed: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    """Share of tries of each kind of fault."""
    most_faults: int = 4
    """Tries of one request after which it is answered well."""
    delay_seconds: float = 0.0
    """What computing an answer takes."""
    stall_seconds: float = 2.0
    """How long a fault of kind `timeout` holds an answer back."""
    slow_seconds: float = 0.3
    """How long one of kind `slow_first_byte` does."""
    wait_seconds: float = 1.0
    """What Retry-After says."""
    honours_keys: bool = True
    batch_polls: int = 1
    """Looks at a batch before it is done."""
    upload_seconds: float = 0.0
    """How long a file is on its way."""
    broken_words: str = "something broke"
    """What a fault of kind `error` says."""
    wrong_every: int = 0
    """One of so many requests is answered with another number, until the answer is handed back; 0 is none."""


def tool_call(body: Mapping[str, Any], wrong_every: int = 0) -> str:
    """What a right answer is: `light 17` becomes a call that names it, so that a mixed-up answer is seen.

    Where the prompt does not ask for JSON the call is written as the format `compact` has it.
    """
    said = [str(message["content"]) for message in body["messages"]]
    number = next(int(found[1]) for text in reversed(said) if (found := re.search(r"light (\d+)$", text)))
    if wrong_every and number % wrong_every == 0 and "That is wrong" not in said[-1]:
        number += 1
    if len(said) > 1 and "JSON" not in said[0]:
        return f"set_light number {number}"
    return json.dumps([{"name": "set_light", "arguments": {"number": number}}])


class FaultyServer:
    """The application, and what it has seen. `scripted` faults are given out first, one a request."""

    def __init__(self, plan: Plan, author: Callable[[Mapping[str, Any]], str] = tool_call) -> None:
        self.plan = plan
        self.author = author
        self.scripted: list[Any] = []
        self.usage: Callable[[Mapping[str, Any], str], dict[str, Any]] = usage_of
        self.bodies: list[tuple[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.reset()
        routes = [
            Route("/stats", self._stats),
            Route("/v1/models", lambda request: JSONResponse({"data": [{"id": "small-one"}]})),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/v1/files", self._upload, methods=["POST"]),
            Route("/v1/files/{name}/content", self._content),
            Route("/v1/batches", self._batches, methods=["GET", "POST"]),
            Route("/v1/batches/{name}", self._batch),
            Route("/v1/{rest:path}", self._answer, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    def reset(self) -> None:
        """Forgets what was seen."""
        for seen in (self.scripted, self.bodies, self.headers):
            seen.clear()
        self.seen: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.billed: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.stored: dict[str, asyncio.Future[str]] = {}
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}

    def stats(self) -> dict[str, float]:
        """Tries, faults, and what would be on the bill."""
        dollars = (self.tokens["in"] * DOLLARS_PER_MILLION_IN + self.tokens["out"] * DOLLARS_PER_MILLION_OUT) / 1e6
        return {
            "tries": self.seen.total(),
            "faults": self.faults.total(),
            "distinct": len(self.seen),
            "billed": self.billed.total(),
            "paid_twice": sum(count - 1 for count in self.billed.values()),
            "billed_but_lost": self.counts["lost"],
            "replayed": self.counts["replayed"],
            "delivered": self.counts["delivered"],
            "tokens": self.tokens.total(),
            "dollars": dollars,
            **{f"fault_{kind}": count for kind, count in sorted(self.faults.items())},
        }

    async def _stats(self, request: Request) -> Response:
        return JSONResponse(self.stats())

    async def _tokenize(self, request: Request) -> Response:
        last = (await request.json())["messages"][-1]
        text = last["content"] if last["role"] == "assistant" else ""
        return JSONResponse({"tokens": [9, 9, *map(ord, text)]})

    async def _answer(self, request: Request) -> Response:
        path = str(request.path_params["rest"])
        if path not in ("completions", "chat/completions"):
            return JSONResponse({"error": {"message": "no such path"}}, 404)
        body = await request.json()
        self.bodies.append((path, body))
        self.headers.append(request.headers)
        name = name_of(body)
        fault = self._fault(name)
        if isinstance(fault, Response):
            return fault
        if fault in ("busy", "busy_with_wait"):
            wait = {"Retry-After": f"{self.plan.wait_seconds:g}"} if fault == "busy_with_wait" else {}
            return JSONResponse({"error": {"message": "rate limit"}}, 429, wait)
        if fault == "error":
            return JSONResponse({"error": {"message": self.plan.broken_words}}, 500)
        key = request.headers.get("idempotency-key", "") if self.plan.honours_keys else ""
        text, billed = await self._computed(key, name, body, wrong=fault == "wrong_tool")
        if fault in ("timeout", "slow_first_byte"):
            await asyncio.sleep(self.plan.stall_seconds if fault == "timeout" else self.plan.slow_seconds)
        gone = fault in LOSING or await request.is_disconnected()
        self.counts["lost"] += billed and gone
        self.counts["delivered"] += not gone
        return self._delivered(json.dumps(self._shape(path, body, text)), fault)

    def _fault(self, name: str) -> Any:
        if self.scripted:
            fault = self.scripted.pop(0)
            return fault if isinstance(fault, str | Response) else fault()
        self.seen[name] += 1
        number = self.seen[name]
        drawn = Random(f"{self.plan.seed}:{name}:{number}").random()
        for kind, share in self.plan.shares.items():
            drawn -= share
            if drawn < 0 and number <= self.plan.most_faults:
                self.faults[kind] += 1
                return kind
        return ""

    async def _computed(self, key: str, name: str, body: Mapping[str, Any], wrong: bool) -> tuple[str, bool]:
        """The answer's text, and whether it was billed just now."""
        if key and key in self.stored:
            self.counts["replayed"] += 1
            return await asyncio.shield(self.stored[key]), False
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if key:
            self.stored[key] = future
        await asyncio.sleep(self.plan.delay_seconds)
        text = self.author(body)
        text = text.replace("set_light", "open_door") if wrong else text
        self._bill(name, body, text)
        future.set_result(text)
        return text, True

    def _bill(self, name: str, body: Mapping[str, Any], text: str) -> None:
        self.billed[name] += 1
        usage = self.usage(body, text)
        self.tokens["in"] += usage["prompt_tokens"]
        self.tokens["out"] += usage["completion_tokens"]

    def _shape(self, path: str, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        usage = self.usage(body, text)
        if path == "completions":
            return {"choices": [{"text": text, "finish_reason": "length"}], "usage": usage}
        logprobs = {"content": [{"logprob": -0.5}, {"logprob": -0.25}]} if body.get("logprobs") else None
        choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": logprobs}
        scores = [None, *({ord("a"): {"logprob": -0.1}, ord("b"): {"logprob": -2.5}} for _ in range(3))]
        more = {"prompt_logprobs": scores} if "prompt_logprobs" in body else {}
        return {"choices": [choice], "usage": usage, **more}

    def _delivered(self, text: str, fault: str) -> Response:
        if fault == "cut":  # fewer bytes than were promised: the connection is closed in the middle
            return Response(text[: len(text) // 2], headers={"Content-Length": str(len(text))})
        if fault == "malformed":
            return Response(text[: len(text) // 2], media_type="application/json")
        return Response(text, media_type="application/json")

    async def _upload(self, request: Request) -> Response:
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        parts: Any = message_from_bytes(head + await request.body()).get_payload()
        fields = {part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in parts}
        assert fields["purpose"] == b"batch"
        self.counts["uploads"] += 1
        await asyncio.sleep(self.plan.upload_seconds)
        if await request.is_disconnected():
            return Response()
        name = f"file-{len(self.files)}"
        self.files[name] = fields["file"]
        return JSONResponse({"id": name})

    async def _content(self, request: Request) -> Response:
        name = str(request.path_params["name"])
        if name not in self.files:
            return JSONResponse({"error": {"message": "no such file"}}, 404)
        return Response(self.files[name], media_type="application/jsonl")

    async def _batches(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"data": [*self.batches.values()][::-1], "has_more": False})
        asked = await request.json()
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {"id": name, "status": "in_progress", "polls": 0, **asked}
        if self.scripted:
            unheard: Response = self.scripted.pop(0)()  # the batch is made all the same
            return unheard
        return JSONResponse(self.batches[name])

    async def _batch(self, request: Request) -> Response:
        batch = self.batches.get(str(request.path_params["name"]))
        if batch is None:
            return JSONResponse({"error": {"message": "no such batch"}}, 404)
        batch["polls"] += 1
        if batch["polls"] > self.plan.batch_polls and batch["status"] == "in_progress":
            self._complete(batch)
        return JSONResponse(batch)

    def _complete(self, batch: dict[str, Any]) -> None:
        good, bad = [], []
        for line in self.files[batch["input_file_id"]].decode().splitlines():
            row = json.loads(line)
            name = name_of(row["body"])
            if self._fault(name):
                failed = {"status_code": 500, "body": {"error": {"message": self.plan.broken_words}}}
                bad.append({"custom_id": row["custom_id"], "response": failed})
                continue
            text = self.author(row["body"])
            self._bill(name, row["body"], text)
            answered = {"status_code": 200, "body": self._shape(row["url"].rpartition("/v1/")[2], row["body"], text)}
            good.append({"custom_id": row["custom_id"], "response": answered})
        batch["status"] = "completed"
        for kind, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[kind] = f"file-{len(self.files)}"
                self.files[batch[kind]] = "".join(json.dumps(row) + "\n" for row in reversed(rows)).encode()


def usage_of(body: Mapping[str, Any], text: str) -> dict[str, int]:
    """A tokenizer of four characters a token; around turns as OpenAI counts them: four tokens each, three to answer."""
    words = sum(len(str(message["content"])) for message in body["messages"])
    return {"prompt_tokens": words // 4 + 4 * len(body["messages"]) + 3, "completion_tokens": len(text) // 4 + 1}


def name_of(body: Mapping[str, Any]) -> str:
    """Which request this is, whatever key it comes under."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves on a free port of this machine, whose number is the first line of the output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=json.loads, default={}, help="fields of Plan as JSON")
    plan = Plan(**parser.parse_args(arguments).plan)
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(json.dumps({"port": listening.getsockname()[1], **asdict(plan)}), flush=True)
    server = FaultyServer(plan, partial(tool_call, wrong_every=plan.wrong_every))
    settings = uvicorn.Config(server.app, log_level="critical", lifespan="off", access_log=False)
    uvicorn.Server(settings).run(sockets=[listening])


if __name__ == "__main__":
    main()
