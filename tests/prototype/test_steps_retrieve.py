"""What retrieve shows: the nearest by words or by vectors, and unlike each other where that is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.methods import build, validated
from supertiny.core.nearest import NearestExamples
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.demands import mistakes
from supertiny.prototype.settings import Settings
from supertiny.prototype.steps._neighbours import ranked
from tests.step_bench import TASK, bench, traces

AREAS = ("kitchen", "bedroom", "garden", "hall", "office", "attic")


class Server(ThreadingHTTPServer):
    """Embeds a text as the areas that it names; the first answers are those of `faults`."""

    request_queue_size = 64

    def __init__(self, faults: tuple[Any, ...] = ()) -> None:
        self.faults = list(faults)
        self.asked: list[str] = []
        self.keys: list[str] = []
        super().__init__(("127.0.0.1", 0), Answering)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Answering(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        server.asked.append(text)
        server.keys.append(self.headers["Idempotency-Key"])
        fault = server.faults.pop(0) if server.faults else None
        row = [float(area in text) for area in AREAS] + [0.01]
        body = {"data": [{"index": 0, "embedding": row}], "usage": {"prompt_tokens": 10}}
        written = json.dumps(fault if isinstance(fault, dict) else body).encode()
        self.send_response(fault if isinstance(fault, int) else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(written)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serving() -> Iterator[Any]:
    opened: list[Server] = []

    def serve(*faults: Any) -> Server:
        server = Server(faults)
        opened.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield serve
    for server in opened:
        server.shutdown()
        server.server_close()


def by_server(server: Server, **more: Any) -> Any:
    known = {"model": "m", "base_url": server.address, "dollars_per_million_in": 1e5}
    return build("steps", {"method": "retrieve", "embedder": {**known, **more}, "examples": 3})


def areas(trace: Any) -> list[str]:
    return [str(row.answer.calls[0].arguments["area"]) for row in trace.examples]


def test_embeddings_of_a_server_are_paid_once(serving: Any, tmp_path: Path) -> None:
    server = serving(429, 503)
    ledger = Ledger(tmp_path / "ledger.sqlite")

    def at() -> Bench:
        return bench(wrap=lambda engine: ledger.wrap(engine, "embedding"))

    first = at()
    found = by_server(server).run(traces("what about the attic", "and the hall"), first)
    assert [set(areas(trace)) for trace in found] == [{"Attic"}, {"Hall"}]
    assert len(server.asked) == 2 + 24 + 2, "two faults, the labelled rows, the requests"
    (once,) = first.shelf.fixed.values()
    assert (once.calls, once.cost.tokens_in) == (24, 240)
    assert [trace.cost.tokens_in for trace in found] == [10, 10]
    assert sum(trace.cost.dollars for trace in found) == pytest.approx(2.0)
    again = by_server(server).run(traces("what about the attic", "and the hall"), at())
    assert again == found
    assert len(server.asked) == 28
    assert sum(bill.tokens_in for bill in ledger.bills()) == 260


def test_embeddings_keep_to_the_budget(serving: Any, tmp_path: Path) -> None:
    server = serving()
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(dollars=1))
    with pytest.raises(BudgetReached):
        by_server(server).run(traces("attic"), bench(wrap=lambda engine: ledger.wrap(engine, "x")))
    assert not server.asked


def test_an_embedding_whose_answer_is_lost_counts_and_is_asked_for_under_its_key(serving: Any, tmp_path: Path) -> None:
    server = serving({"data": []})
    ledger = Ledger(tmp_path / "ledger.sqlite")
    by_server(server).run(traces("attic"), bench(wrap=lambda engine: ledger.wrap(engine, "x")))
    assert max(server.keys.count(key) for key in server.keys) == 2
    assert (ledger.lost()[0].calls, ledger.lost()[0].tokens_in) == (1, 10)


@pytest.mark.parametrize(
    ("fault", "told"),
    [(401, "401"), (500, "500"), ({"data": [{"index": 0, "embedding": "x"}]}, "no vectors"), ({"data": []}, "no vec")],
)
def test_a_server_that_does_not_embed_is_told(serving: Any, fault: Any, told: str) -> None:
    server = serving(*[fault] * 99)
    with pytest.raises(UserError, match=told):
        by_server(server, retries=1).run(traces("attic"), bench())
    assert len(server.asked) >= (1 if fault == 401 else 2)


def test_an_estimate_asks_no_server(serving: Any) -> None:
    server = serving()
    (found,) = by_server(server).run(traces("turn off the bedroom light"), bench(spends=False))
    assert len(found.examples) == 3
    assert not server.asked


def test_settings_of_embeddings_are_checked() -> None:
    block = {"method": "retrieve", "embedder": {"model": "m", "modell": 1}}
    with pytest.raises(UserError, match="embedder: there is no setting 'modell'"):
        build("steps", block)


def test_an_embedder_whose_price_nobody_knows_is_told_before_anything_is_spent() -> None:
    block = {"method": "retrieve", "embedder": {"model": "nobodys-own", "base_url": "https://vectors.example/v1"}}
    settings = validated(Settings, {"steps": [block, "fill"]}, "prototype")
    (told,) = mistakes(settings, TASK)
    assert str(told).startswith("prototype.steps.0.embedder: nobody knows the price of 'nobodys-own'")


def test_the_default_measure_is_the_one_of_nearest_examples() -> None:
    texts = ["turn off the bedroom light", "dim the attic to 80", "lights on in the hall", "что"]
    found = build("steps", {"method": "retrieve", "examples": 4}).run(traces(*texts), bench())
    known = NearestExamples(TASK.labelled).nearest(texts, 4)
    assert [[TASK.labelled.index(row) for row in trace.examples] for trace in found] == [
        [place for place, _ in reversed(row)] for row in known
    ]


def test_diversity_shows_examples_that_are_less_alike() -> None:
    alike = []
    for diversity in (0.0, 0.6):
        block = {"method": "retrieve", "examples": 4, "diversity": diversity}
        (found,) = build("steps", block).run(traces("turn off the bedroom light"), bench())
        assert found.examples[-1].request.text == "turn off the bedroom light", "the nearest stays"
        vectors = NearestExamples(TASK.labelled).vectors([row.request.text for row in found.examples])
        alike.append(float((vectors @ vectors.T).sum()))
    assert alike[1] < alike[0]


def test_maximal_marginal_relevance_is_the_formula() -> None:
    rows = np.array([[1, 0], [0.99, 0.141067], [0, 1]], dtype=np.float32)
    query = np.array([[0.9, 0.43589]], dtype=np.float32)
    assert ranked(query, rows, 3, 0.0) == [[1, 0, 2]]
    # After 1: row 0 is worth 0.5*0.9 - 0.5*0.99 = -0.045, row 2 0.5*0.436 - 0.5*0.141 = 0.147.
    assert ranked(query, rows, 3, 0.5) == [[1, 2, 0]]


def test_a_row_is_not_shown_with_itself_but_rows_without_a_name_are() -> None:
    row = TASK.labelled[3]
    (own,) = build("steps", "retrieve").run([Trace(row.request)], bench())
    assert len(own.examples) == 8
    assert row not in own.examples
    nameless = [replace(each, request=replace(each.request, id="")) for each in TASK.labelled]
    (found,) = build("steps", "retrieve").run([Trace(nameless[3].request)], bench(nearest=NearestExamples(nameless)))
    assert found.examples[-1] == nameless[3]


def test_without_labelled_rows_nothing_is_shown() -> None:
    empty = bench(nearest=NearestExamples(()), task=replace(TASK, labelled=()))
    for block in ({"method": "retrieve"}, {"method": "retrieve", "diversity": 0.3}):
        assert [trace.examples for trace in build("steps", block).run(traces("attic"), empty)] == [()]
