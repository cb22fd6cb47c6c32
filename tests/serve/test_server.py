"""Batches, load, clients that leave, the fallback, health, shutdown, ports."""

import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from supertiny.core.errors import UserError
from supertiny.core.records import Answer, Call
from supertiny.serve.routers.confidence import Confidence
from supertiny.serve.routing import Routing
from supertiny.serve.server import listen, printable, serve
from supertiny.serve.settings import Limits
from tests.serve.conftest import Kitchen

DEPTH = "supertiny_queue_depth"


def _hold(served, pool, text="first"):
    """Sends a request that stays in the model's hands."""
    served.kitchen.open.clear()
    known = len(served.kitchen.batches)
    held = pool.submit(served.post, text)
    served.until(lambda: len(served.kitchen.batches) > known)
    return held


def test_requests_that_come_together_are_answered_together(start):
    served = start()
    with ThreadPoolExecutor(33) as pool:
        held = _hold(served, pool)
        known = len(served.kitchen.batches)
        replies = [pool.submit(served.post, f"lamp {number}") for number in range(32)]
        served.until(lambda: served.metric(DEPTH) == 32)
        served.kitchen.open.set()
        calls = [one.result().json()["choices"][0]["message"]["tool_calls"][0] for one in replies]
        assert held.result().status_code == 200
    assert [json.loads(c["function"]["arguments"])["name"] for c in calls] == [f"lamp {n}" for n in range(32)]
    assert [len(batch) for batch in served.kitchen.batches[known:]] == [16, 16]
    assert served.metric('supertiny_requests_total{outcome="call"}') == 33
    assert served.metric("supertiny_batch_size_sum") == 34  # the warm-up is one
    assert served.metric("supertiny_request_seconds_count") == 33
    assert served.metric('supertiny_tokens_total{direction="out"}') == 33 * 7


def test_a_request_that_breaks_the_engine_harms_no_neighbour(start):
    served = start()
    with ThreadPoolExecutor(4) as pool:
        held = _hold(served, pool)
        replies = [pool.submit(served.post, text) for text in ("a", "boom", "b")]
        served.until(lambda: served.metric(DEPTH) == 3)
        served.kitchen.open.set()
        assert [one.result().status_code for one in (held, *replies)] == [200, 200, 500, 200]


def test_a_full_queue_sends_away_and_says_when_to_come_back(start):
    served = start(limits=Limits(waiting=2))
    with ThreadPoolExecutor(3) as pool:
        held = [_hold(served, pool), pool.submit(served.post), pool.submit(served.post)]
        served.until(lambda: served.metric(DEPTH) == 2)
        reply = served.post()
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error"]["type"] == "rate_limit_error"
        served.kitchen.open.set()
        assert [one.result().status_code for one in held] == [200] * 3
    assert served.metric('supertiny_requests_total{outcome="overloaded"}') == 1


def test_a_slow_model_is_504(start):
    served = start(limits=Limits(request_seconds=1.0))
    served.kitchen.open.clear()
    assert served.post().status_code == 504


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_harms_nobody_and_leaves_the_queue(start, stream):
    served = start()
    body = {"model": "home", "stream": stream, "messages": [{"role": "user", "content": "left"}]}
    raw = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
    with ThreadPoolExecutor(1) as pool:
        held = _hold(served, pool)
        line = socket.create_connection(("127.0.0.1", served.port), 20)
        line.sendall(head + raw)
        served.until(lambda: served.metric(DEPTH) == 1)
        line.close()
        served.until(lambda: served.metric('supertiny_requests_total{outcome="gone"}') == 1)
        served.kitchen.open.set()
        assert held.result().status_code == 200
    assert served.post("next").status_code == 200
    assert "left" not in [request.text for batch in served.kitchen.batches for request in batch]


def test_a_stream_that_is_dropped_midway_leaves_the_server_well(start):
    served = start()
    messages = [{"role": "user", "content": "lights " * 500}]
    for _ in range(5):
        with served.openai.chat.completions.create(model="home", messages=messages, stream=True) as stream:
            next(iter(stream))
    assert served.post("next").status_code == 200
    assert served.http.get("/healthz").json()["status"] == "ok"


_LONG_WINDED = """
import sys, uvicorn
from supertiny.core.records import Answer
from supertiny.serve.server import create_app, listen

class LongWinded:
    name = "long-winded"
    def answer(self, requests):
        return [Answer((), "word " * (2_000_000 if r.text == "talk" else 1)) for r in requests]

listener = listen("127.0.0.1", int(sys.argv[1]))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(create_app(LongWinded(), "home", []), log_level="critical")).run(sockets=[listener])
"""


def test_a_server_that_is_killed_while_streaming_is_an_error_to_the_client_and_starts_again():
    def started(port):
        server = subprocess.Popen([sys.executable, "-c", _LONG_WINDED, str(port)], stdout=subprocess.PIPE)
        return server, int(server.stdout.readline())

    server, port = started(0)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=2)
    try:
        messages = [{"role": "user", "content": "talk"}]
        with client.chat.completions.create(model="home", messages=messages, stream=True) as stream:
            heard = [next(iter(stream)).choices[0]]
            server.kill()
            server.wait()
            with pytest.raises((httpx.HTTPError, openai.APIError)):
                heard += [chunk.choices[0] for chunk in stream]
        assert all(choice.finish_reason is None for choice in heard)  # half an answer never looks like a whole one
        server, again = started(port)  # its port is not held by the dead
        assert again == port
        whole = client.chat.completions.create(model="home", messages=[{"role": "user", "content": "hi"}])
        assert whole.choices[0].message.content == "word "
    finally:
        server.kill()
        server.wait()


class _Oracle(Kitchen):
    name = "oracle"


def test_the_fallback_answers_where_the_draft_is_doubted(start):
    oracle = _Oracle()
    served = start(fallback=oracle, routing=Routing(Confidence(), 0.4))
    sure, doubted = served.post("lights").json(), served.post("hello").json()
    assert sure["supertiny"] == {"by": "kitchen", "confidence": 0.75, "doubt": 0.25}
    assert doubted["supertiny"] == {"by": "oracle", "confidence": 0.5, "doubt": 0.5}
    assert doubted["usage"]["total_tokens"] == 2 * sure["usage"]["total_tokens"]
    assert [request.text for batch in oracle.batches for request in batch] == ["hello"]
    assert served.metric("supertiny_escalations_total") == 1
    oracle.broken = True
    failed = served.post("hello")
    assert (failed.status_code, failed.json()["error"]["code"]) == (502, "fallback_failed")


def test_health_follows_the_model(start):
    kitchen = Kitchen()
    kitchen.open.clear()
    served = start(kitchen)
    starting = served.http.get("/healthz")
    assert (starting.status_code, starting.json()["status"]) == (503, "starting")
    kitchen.open.set()
    served.until(lambda: served.http.get("/healthz").status_code == 200)
    kitchen.broken = True
    assert served.post().status_code == 500
    assert served.http.get("/healthz").json()["status"] == "failing"
    kitchen.broken = False
    assert served.http.get("/healthz").json()["status"] == "ok"


def test_shutdown_answers_what_waits(start):
    served = start()
    with ThreadPoolExecutor(3) as pool:
        held = [_hold(served, pool), pool.submit(served.post), pool.submit(served.post)]
        served.until(lambda: served.metric(DEPTH) == 2)
        served.server.should_exit = True
        served.kitchen.open.set()
        assert [one.result().status_code for one in held] == [200] * 3


def test_a_port_in_use_is_told(start):
    served = start()
    with pytest.raises(UserError, match=f"port {served.port} of 127.0.0.1 is in use"):
        listen("127.0.0.1", served.port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("no.such.host.invalid", 0)])
def test_an_address_that_cannot_be_had_is_told(host, port):
    with pytest.raises(UserError, match="cannot listen on"):
        listen(host, port)


def test_a_run_that_has_not_ended_is_told(tmp_path):
    with pytest.raises(UserError, match=r"serve.json is not there"):
        serve(tmp_path)


def test_printable():
    calls = (Call("turn_on", {"name": "灯"}), Call("stop"))
    assert (
        printable(Answer(calls))
        == '{"name": "turn_on", "arguments": {"name": "灯"}}\n{"name": "stop", "arguments": {}}'
    )
    assert printable(Answer((), "no")) == "no call: no"
    assert printable(Answer()) == "no call"
