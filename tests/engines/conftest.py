"""A server on a loopback port that echoes, and fails as the test says."""

import threading

import pytest
import uvicorn

from benchmarks._faulty_server import FaultyServer, Plan

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}


def echo(body):
    return body["prompt"].upper() if "prompt" in body else body["messages"][-1]["content"] + "!"


@pytest.fixture(scope="session")
def running():
    faulty = FaultyServer(Plan(), echo)
    server = uvicorn.Server(uvicorn.Config(faulty.app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    faulty.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    yield faulty
    server.should_exit = True
    thread.join()


@pytest.fixture
def server(running, monkeypatch):
    running.reset()
    running.plan, running.usage = Plan(), lambda body, text: USAGE
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("SUPERTINY_PRICES", "/nowhere/prices.yaml")
    return running
