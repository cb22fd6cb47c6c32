"""A search over a real socket, on a server that fails every fourth try: nothing is lost, paid twice or overspent."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from benchmarks._faulty_server import DOLLARS_PER_MILLION_IN, DOLLARS_PER_MILLION_OUT, FaultyServer, Plan
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.methods import validated
from supertiny.core.progress import Progress
from supertiny.core.recipe import Recipe
from supertiny.core.records import Call
from supertiny.core.run import Run
from supertiny.prototype.optimise import optimise
from supertiny.prototype.search.settings import Settings as Search
from supertiny.prototype.settings import Settings
from tests.small_task import AREAS, example, small_task

FAULTS = {"busy": 0.1, "error": 0.1, "cut": 0.05}
ROWS = 24
TASK = small_task(
    valid=[
        example(f"case {n}: light in the {AREAS[n % 6]}", [Call("TurnOn", {"area": AREAS[n % 6]})]) for n in range(ROWS)
    ]
)


def author(body: Mapping[str, Any]) -> str:
    """Right where it is shown two examples."""
    shown = sum(message["role"] == "assistant" for message in body["messages"])
    return f"{'TurnOn' if shown == 2 else 'TurnOff'} area {body['messages'][-1]['content'].split()[-1]}"


@pytest.fixture(scope="module")
def running() -> Iterator[FaultyServer]:
    faulty = FaultyServer(Plan(), author)
    server = uvicorn.Server(uvicorn.Config(faulty.app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    faulty.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"  # type: ignore[attr-defined]
    yield faulty
    server.should_exit = True
    thread.join()


@pytest.fixture
def server(running: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> FaultyServer:
    running.reset()
    running.plan = Plan(shares=FAULTS)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    return running


def run_search(server: Any, folder: Path, budget: Budget | None = None) -> dict[str, Any]:
    engine = {
        "method": "openai",
        "model": "small-one",
        "base_url": server.url,
        "backoff_seconds": 0.001,
        "dollars_per_million_in": DOLLARS_PER_MILLION_IN,
        "dollars_per_million_out": DOLLARS_PER_MILLION_OUT,
    }
    settings = validated(Settings, {"engine": engine, "steps": ["fill"], "chunk": 8}, "prototype")
    search = validated(Search, {"steps": [["fill"]], "examples": [0, 2, 4], "least_rows": 4}, "optimise")
    ledger = Ledger(folder / "ledger.sqlite", settings.budget)
    try:
        run = Run(folder, Recipe("x", TASK.folder, folder, 3), TASK, ledger, Progress(quiet=True))
        if budget is not None:
            search = validated(Search, {**vars(search), "budget": vars(budget)}, "optimise")
        return optimise(settings, search, run)
    finally:
        ledger.close()


def test_a_search_bears_a_failing_server_and_its_budget_holds(server: FaultyServer, tmp_path: Path) -> None:
    whole = run_search(server, tmp_path / "whole")
    assert server.stats()["faults"] > 0
    assert whole["chosen"]["prototype"]["steps"] == [{"method": "retrieve", "examples": 2}, "fill"]
    assert whole["chosen"]["exact"] == 1.0
    dollars = server.stats()["dollars"]

    server.reset()
    limit = 0.5 * dollars
    part = run_search(server, tmp_path / "part", Budget(dollars=limit))
    assert "budget" in part["stopped"]
    assert 0 < server.stats()["dollars"] <= limit
    rest = run_search(server, tmp_path / "part")
    assert rest["stopped"] == ""
    assert rest["chosen"]["prototype"] == whole["chosen"]["prototype"]
    assert server.stats()["paid_twice"] == 0
    assert rest["spent_in_all"]["dollars"] >= server.stats()["dollars"] - 1e-9, "what may have been lost is on the bill"
