"""A hosted engine behind the ledger: what is paid is known, also where answers do not arrive; budgets hold."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from benchmarks._faulty_server import SHARES, FaultyServer, Plan, tool_call, usage_of
from supertiny.core import payments as payments_module
from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.records import Grammar, Prompt, Sampling
from supertiny.engines._openai_engine import ServerEngine
from supertiny.engines.openai import OpenAI
from tests.engines.child import killed_when

FEW = Sampling(max_tokens=20)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(({"role": "user", "content": f"light {number}"},)) for number in range(count)]


def opened(server: Any, **settings: Any) -> ServerEngine:
    """An engine at the server's price that waits for nothing: its clock moves when it sleeps."""
    chosen = {"concurrency": 64, "dollars_per_million_in": 10.0, "dollars_per_million_out": 40.0, **settings}
    engine = OpenAI("small-one", server.url, **chosen).open()
    now = [0.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        await asyncio.sleep(0)

    engine.caller.sleep, engine.caller.clock = sleep, lambda: now[0]
    return engine


@pytest.fixture
def faulty(server: FaultyServer) -> Any:
    shares = {kind: share for kind, share in SHARES.items() if kind not in ("timeout", "slow_first_byte")}
    server.plan = Plan(shares={**shares, "cut": 0.1}, most_faults=3)
    server.author, author = tool_call, server.author
    server.usage = usage_of
    yield server
    server.author = author


def cut() -> Response:
    return Response('{"choices": []}', headers={"Content-Length": "400"})


def test_with_faults_each_call_is_answered_and_paid_once(faulty: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    answers = ledger.wrap(opened(faulty), "test").complete(prompts(150), FEW)
    assert [json.loads(a.text)[0]["arguments"]["number"] for a in answers] == list(range(150))
    seen = faulty.stats()
    assert seen["faults"] / seen["tries"] > 0.2
    assert (seen["distinct"], seen["billed"], seen["paid_twice"]) == (150, 150, 0)
    (bill,) = ledger.bills()
    (lost,) = ledger.lost()
    assert (bill.calls, bill.tokens_in + bill.tokens_out) == (150, seen["tokens"])
    assert bill.dollars == pytest.approx(seen["dollars"])
    # Each try without an answer is counted, once, as one that may be on the bill.
    assert lost.calls == seen["fault_cut"] + seen["fault_malformed"] >= seen["billed_but_lost"] > 0
    assert ledger.ask("SELECT COUNT(*) FROM pending") == [(0,)]


def test_answers_that_come_broken_again_and_again_are_paid_once(faulty: Any, tmp_path: Path) -> None:
    faulty.plan = Plan(shares={"malformed": 1.0}, most_faults=4)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    answers = ledger.wrap(opened(faulty), "test").complete(prompts(20), FEW)
    assert [json.loads(a.text)[0]["arguments"]["number"] for a in answers] == list(range(20))
    seen = faulty.stats()
    assert (seen["tries"], seen["billed"], seen["paid_twice"]) == (100, 20, 0)
    assert ledger.lost()[0].calls == 80, "which of them the provider bills is not known here"


def test_a_broken_answer_that_was_the_last_is_asked_for_anew_by_the_next_run(server: Any, tmp_path: Path) -> None:
    server.scripted = [Response("{")]
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(UserError, match="not JSON"):
        ledger.wrap(opened(server, retries=0), "test").complete(prompts(1), FEW)
    ledger.wrap(opened(server, retries=0), "test").complete(prompts(1), FEW)
    assert len({headers["idempotency-key"] for headers in server.headers}) == 2
    assert ledger.lost()[0].calls == 1


@pytest.mark.parametrize("honours", [True, False])
@pytest.mark.parametrize("limit", [{"dollars": 0.12}, {"tokens": 4500}])
def test_a_budget_holds_with_64_under_way_and_tries_that_are_billed_and_lost(
    limit: dict[str, Any], honours: bool, faulty: Any, tmp_path: Path
) -> None:
    faulty.plan = replace(faulty.plan, honours_keys=honours)
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(**limit))
    with pytest.raises(BudgetReached):
        ledger.wrap(opened(faulty), "test").complete(prompts(300), FEW)
    seen = faulty.stats()
    ((name, most),) = limit.items()
    assert 0.5 * most < seen[name] <= most, "what is certain to fit is sent, and nothing else"
    assert seen["billed_but_lost"] > 0
    assert honours or seen["paid_twice"] > 0
    spent = ledger.spent()
    assert seen[name] <= getattr(spent, name) <= most
    ledger.close()
    assert vars(Ledger(tmp_path / "ledger.sqlite").spent()) == pytest.approx(vars(spent))


def test_a_budget_too_small_for_one_call_sends_nothing(faulty: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(tokens=40))
    with pytest.raises(BudgetReached, match="40 tokens"):
        ledger.wrap(opened(faulty), "test").complete(prompts(3), FEW)
    assert faulty.bodies == []
    assert ledger.lost() == []


def test_the_schema_that_goes_along_counts_against_the_budget(faulty: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(tokens=1000))
    schema = Grammar("json_schema", json.dumps({"type": "array", "description": "x" * 1000}))
    with pytest.raises(BudgetReached):
        ledger.wrap(opened(faulty), "test").complete(prompts(1), FEW, [schema])
    assert faulty.bodies == []


def test_further_fields_that_go_along_count_too(faulty: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(tokens=1000))
    with pytest.raises(BudgetReached):
        ledger.wrap(opened(faulty, extra_body={"guided": "x" * 1000}), "test").complete(prompts(1), FEW)
    assert faulty.bodies == []


def test_minutes_end_a_batch_of_which_nobody_answers(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(payments_module.time, "perf_counter", lambda: now[0])
    server.scripted = [Response("{}", 503)] * 50

    async def sleep(seconds: float) -> None:
        assert seconds <= 60 - now[0], "no wait goes beyond the budget"
        now[0] += seconds
        await asyncio.sleep(0)

    engine = opened(server, concurrency=1, retries=40, backoff_seconds=8)
    engine.caller.sleep, engine.caller.clock = sleep, lambda: now[0]
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(minutes=1))
    with pytest.raises(BudgetReached, match="1 minutes"):
        ledger.wrap(engine, "test").complete(prompts(2), FEW)
    assert 55 <= now[0] <= 60
    assert ledger.spent().seconds == pytest.approx(now[0])
    with pytest.raises(BudgetReached, match="1 minutes"):
        ledger.wrap(engine, "test").complete(prompts(1), FEW)


def test_a_pause_that_the_quota_asks_for_does_not_outlast_the_minutes(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(payments_module.time, "perf_counter", lambda: now[0])
    empty = {"X-RateLimit-Remaining-Requests": "0", "X-RateLimit-Reset-Requests": "150s"}
    server.scripted = [Response('{"choices": [{"message": {"content": "a"}}]}', headers=empty)]

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        await asyncio.sleep(0)

    engine = opened(server, concurrency=1)
    engine.caller.sleep, engine.caller.clock = sleep, lambda: now[0]
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(minutes=1))
    with pytest.raises(BudgetReached, match="1 minutes"):
        ledger.wrap(engine, "test").complete(prompts(3), FEW)
    assert now[0] <= 60
    assert ledger.bills()[0].calls == 1


def killed(server: Any, place: Path, count: int) -> None:
    """Leaves the ledger as kill -9 does while `count` calls are under way: noted, sent, and not answered."""
    ledger, faults = Ledger(place), [cut] * count
    server.scripted = list(faults)
    with pytest.raises(UserError, match="given up"):
        ledger.wrap(opened(server, retries=0), "test").complete(prompts(count), FEW)
    ledger.close()


def test_after_a_kill_the_same_key_is_sent_and_the_lost_try_counts(server: Any, tmp_path: Path) -> None:
    place = tmp_path / "ledger.sqlite"
    killed(server, place, 1)
    (first,) = [headers["idempotency-key"] for headers in server.headers]
    ledger = Ledger(place)
    worst = ledger.spent()
    assert worst.tokens > 20
    assert [bill.calls for bill in ledger.lost()] == [1]
    ledger.wrap(opened(server), "test").complete(prompts(1), FEW)
    assert server.headers[-1]["idempotency-key"] == first
    (lost,) = ledger.lost()
    # The prompt's length is known now, what it wrote is taken at the most.
    assert (lost.calls, lost.tokens_in) == (1, 7 + 20)
    assert ledger.spent().tokens == 7 + 2 + 27 < 2 * worst.tokens
    ledger.wrap(opened(server), "test").anew("again").complete(prompts(1), FEW)
    assert server.headers[-1]["idempotency-key"] != first, "a call that is to be computed anew has a key of its own"


def test_time_counts_that_passed_before_a_kill(server: FaultyServer, tmp_path: Path) -> None:
    place = tmp_path / "ledger.sqlite"
    server.plan = Plan(delay_seconds=4.0)
    noted, began = 0.0, time.monotonic()

    def noted_for_a_while() -> bool:
        nonlocal noted
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(place)) as connection:
            noted = connection.execute("SELECT SUM(seconds) FROM running").fetchone()[0] or 0.0
        return noted > 0.5

    killed_when(noted_for_a_while, server.url, place, 1, {"minutes": 1})
    lived = time.monotonic() - began
    while not server.billed:
        time.sleep(0.01)  # what it computes still is no part of the next test
    ledger = Ledger(place, Budget(minutes=1))
    assert ledger.bills() == []
    assert 0.5 < noted <= ledger.spent().seconds < lived
    assert ledger.lost()[0].seconds == ledger.spent().seconds


def test_another_ledger_sends_other_keys(server: Any, tmp_path: Path) -> None:
    for name in "ab":
        Ledger(tmp_path / name).wrap(opened(server), "test").complete(prompts(1), FEW)
    assert len({headers["idempotency-key"] for headers in server.headers}) == 2


def test_a_server_that_does_not_count_is_billed_at_the_worst(server: Any, tmp_path: Path) -> None:
    server.usage = lambda body, text: {}
    server.scripted = [Response('{"choices": [{"message": {"content": "a"}}]}')]
    ledger = Ledger(tmp_path / "ledger.sqlite")
    (answer,) = ledger.wrap(opened(server), "test").complete(prompts(1), FEW)
    assert answer.tokens_out == 20
    assert answer.tokens_in > len("light 0")
    assert ledger.bills()[0].dollars > 0


def test_an_answer_that_is_withheld_is_paid_and_not_asked_for_again(server: Any, tmp_path: Path) -> None:
    withheld = {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}
    usage = {"prompt_tokens": 7, "completion_tokens": 1}
    server.scripted = [Response(json.dumps({**withheld, "usage": usage}))]
    ledger = Ledger(tmp_path / "ledger.sqlite")
    engine = ledger.wrap(opened(server), "test")
    assert engine.complete(prompts(1), FEW)[0].finish == "error"
    assert (ledger.bills()[0].calls, ledger.lost()) == (1, [])
    assert ledger.spent().tokens == 8
    assert engine.complete(prompts(1), FEW)[0].finish == "error"
    assert len(server.headers) == 1


def test_a_refused_call_leaves_nothing_behind(server: Any, tmp_path: Path) -> None:
    server.scripted = [Response('{"error": {"message": "no"}}', 400)]
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(UserError, match="400: no"):
        ledger.wrap(opened(server), "test").complete(prompts(1), FEW)
    assert ledger.lost() == []
    assert vars(ledger.spent()) == {"dollars": 0, "tokens": 0, "seconds": 0}


def test_bills_tell_purposes_apart(server: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    engine = ledger.wrap(opened(server), "pipeline on valid")
    engine.under("pipeline on valid: check").complete(prompts(2), FEW)
    engine.under("plain").complete(prompts(3), FEW)
    assert {bill.purpose: bill.calls for bill in ledger.bills()} == {"pipeline on valid: check": 2, "plain": 1}
    assert [bill.calls for bill in ledger.bills("pipeline")] == [2]


def test_a_ledger_of_before_opens(tmp_path: Path, server: Any) -> None:
    place = tmp_path / "ledger.sqlite"
    Ledger(place).wrap(opened(server), "test").complete(prompts(2), FEW)
    with sqlite3.connect(place) as connection:
        connection.executescript("DROP TABLE pending; DROP TABLE lost; DROP TABLE running; DROP TABLE pipelines")
    connection.close()
    ledger = Ledger(place)
    assert ledger.spent().tokens == 18
    assert len(ledger.wrap(opened(server), "test").complete(prompts(2), FEW)) == 2
    assert len(server.headers) == 2
