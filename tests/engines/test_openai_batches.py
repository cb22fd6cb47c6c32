"""A provider's batch API: one file up, answers down, nothing paid twice whenever the run is killed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from benchmarks._faulty_server import Plan, tool_call, usage_of
from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.payments import PaidCall, Payments
from supertiny.core.records import Prompt, Sampling
from supertiny.engines._openai_engine import ServerEngine
from supertiny.engines.openai import OpenAI
from tests.engines.child import killed_when

FEW = Sampling(max_tokens=20)


class KilledError(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def prompts(count: int) -> list[Prompt]:
    return [Prompt(({"role": "user", "content": f"light {number}"},)) for number in range(count)]


def opened(server: Any, killed_after: int | None = None, **settings: Any) -> ServerEngine:
    """An engine that waits for nothing, and is killed at one of its waits."""
    prices = {"dollars_per_million_in": 10.0, "dollars_per_million_out": 40.0}
    engine = OpenAI("small-one", server.url, **{"batch": True, **prices, **settings}).open()
    waits = 0

    async def sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if killed_after is not None and waits > killed_after:
            raise KilledError
        await asyncio.sleep(0)

    engine.caller.sleep = sleep
    return engine


@pytest.fixture
def provider(server: Any) -> Any:
    server.plan = Plan(batch_polls=3)
    server.author, author = tool_call, server.author
    server.usage = usage_of
    yield server
    server.author = author


def numbers(answers: Any) -> list[int]:
    return [json.loads(answer.text)[0]["arguments"]["number"] for answer in answers]


def test_a_batch_answers_in_order_at_half_the_price(provider: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    answers = ledger.wrap(opened(provider), "test").complete(prompts(30), FEW)
    assert numbers(answers) == list(range(30))
    assert len(provider.batches) == 1
    assert provider.bodies == [], "no single call was made"
    (batch,) = provider.batches.values()
    assert (batch["endpoint"], batch["completion_window"]) == ("/v1/chat/completions", "24h")
    (bill,) = ledger.bills()
    assert (bill.calls, bill.dollars) == (30, pytest.approx(provider.stats()["dollars"] / 2))
    assert ledger.lost() == []
    assert opened(provider).name == opened(provider, batch=False).name, "the ledger's answers hold for both ways"


def test_rows_that_fail_go_into_another_batch(provider: Any, tmp_path: Path) -> None:
    provider.plan = Plan(shares={"error": 0.3})
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert numbers(ledger.wrap(opened(provider), "test").complete(prompts(30), FEW)) == list(range(30))
    seen = provider.stats()
    assert len(provider.batches) > 1
    assert (seen["billed"], seen["paid_twice"]) == (30, 0)
    assert ledger.lost() == []


def test_rows_that_fail_each_time_are_told_and_the_others_kept(provider: Any, tmp_path: Path) -> None:
    provider.plan = Plan(shares={"error": 0.6}, most_faults=99)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(UserError, match="failed 2 times: something broke"):
        ledger.wrap(opened(provider, retries=1), "test").complete(prompts(20), FEW)
    assert 0 < ledger.bills()[0].calls < 20
    assert ledger.lost() == []


@pytest.mark.parametrize("again", [{"batch": True}, {"batch": False}])
def test_killed_while_it_waits_the_same_batch_is_read(again: dict[str, bool], provider: Any, tmp_path: Path) -> None:
    for waits in (0, 1):
        with pytest.raises(KilledError):
            Ledger(tmp_path / "ledger.sqlite").wrap(opened(provider, waits), "test").complete(prompts(9), FEW)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.lost()[0].calls == 9, "until it is read, all of it may be on the bill"
    assert numbers(ledger.wrap(opened(provider, **again), "test").complete(prompts(12), FEW)) == list(range(12))
    seen = provider.stats()
    assert len(provider.batches) == (2 if again["batch"] else 1)
    assert (seen["billed"], seen["paid_twice"]) == (12, 0)
    assert ledger.lost() == []


def test_killed_before_the_batchs_name_was_heard_it_is_found_by_its_token(provider: Any, tmp_path: Path) -> None:
    def kill() -> Response:
        return Response("{}", 503)  # the batch was made; the run is killed in the wait before it asks again

    provider.scripted = [kill]
    with pytest.raises(KilledError):
        Ledger(tmp_path / "ledger.sqlite").wrap(opened(provider, 0), "test").complete(prompts(5), FEW)
    assert len(provider.batches) == 1
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert numbers(ledger.wrap(opened(provider), "test").complete(prompts(5), FEW)) == list(range(5))
    assert len(provider.batches) == 1
    assert provider.stats()["billed"] == 5


def test_killed_while_the_file_is_on_its_way_nothing_is_spent_and_the_run_goes_on(
    provider: Any, tmp_path: Path
) -> None:
    place, budget = tmp_path / "ledger.sqlite", {"dollars": 0.006}
    provider.plan = Plan(upload_seconds=3)
    killed_when(lambda: provider.counts["uploads"] == 1, provider.url, place, 5, budget, batch=True)
    assert provider.batches == {}
    provider.plan = Plan()
    noted = Ledger(place, Budget(**budget))
    assert 0.003 < noted.spent().dollars < 0.006, "the budget has no room for the same calls once more"
    noted.close()
    ledger = Ledger(place, Budget(**budget))
    assert numbers(ledger.wrap(opened(provider), "test").complete(prompts(5), FEW)) == list(range(5))
    assert ledger.lost() == []
    assert provider.stats()["billed"] == 5


def test_a_batch_that_is_gone_is_told_and_ordered_anew(provider: Any, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        Ledger(tmp_path / "ledger.sqlite").wrap(opened(provider, 0), "test").complete(prompts(5), FEW)
    sent = set(provider.files["file-0"].split(b'"custom_id": "')[1:])
    provider.batches.clear()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.warns(UserWarning, match="batch batch-0 is gone; its 5 requests are sent again"):
        assert numbers(ledger.wrap(opened(provider), "test").complete(prompts(5), FEW)) == list(range(5))
    assert ledger.lost()[0].calls == 5, "which of them the provider bills is not known"
    again = set(provider.files["file-1"].split(b'"custom_id": "')[1:])
    assert not {row[:32] for row in sent} & {row[:32] for row in again}


def test_what_a_batch_answers_costs_the_batchs_price_whatever_is_set_now(provider: Any, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        Ledger(tmp_path / "ledger.sqlite").wrap(opened(provider, 0), "test").complete(prompts(5), FEW)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    worst = ledger.spent().dollars
    ledger.wrap(opened(provider, batch=False), "test").complete(prompts(5), FEW)
    (bill,) = ledger.bills()
    assert bill.dollars == pytest.approx(provider.stats()["dollars"] / 2)
    assert bill.dollars < worst
    assert ledger.spent().dollars == pytest.approx(bill.dollars)


def test_a_try_that_was_lost_at_the_full_price_stays_at_it(provider: Any, tmp_path: Path) -> None:
    provider.plan = Plan(shares={"cut": 1.0}, most_faults=1)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(UserError, match="given up"):
        ledger.wrap(opened(provider, batch=False, retries=0), "test").complete(prompts(1), FEW)
    worst = ledger.spent().dollars
    call = PaidCall(ledger.ask("SELECT key FROM pending")[0][0], prompts(1)[0], None)
    Payments(ledger, opened(provider), "test", [call], FEW)
    assert ledger.spent().dollars == worst
    ledger.wrap(opened(provider), "test").complete(prompts(1), FEW)
    (bill,), (lost,) = ledger.bills(), ledger.lost()
    assert lost.dollars == pytest.approx((bill.tokens_in * 10 + FEW.max_tokens * 40) / 1e6)
    assert bill.dollars == pytest.approx((bill.tokens_in * 10 + bill.tokens_out * 40) / 2e6)


def test_a_row_that_repeats_the_key_does_not_show_it(provider: Any, tmp_path: Path) -> None:
    provider.plan = Plan(shares={"error": 1.0}, most_faults=99, broken_words="sk-secret is broken")
    with pytest.raises(UserError, match=r"\(key\) is broken") as caught:
        Ledger(tmp_path / "ledger.sqlite").wrap(opened(provider, retries=0), "test").complete(prompts(2), FEW)
    assert "sk-secret" not in str(caught.value)


def test_an_order_whose_answer_was_cut_off_is_not_given_twice(provider: Any, tmp_path: Path) -> None:
    provider.scripted = [lambda: Response('{"id": "bat', headers={"Content-Length": "400"})]
    answers = Ledger(tmp_path / "ledger.sqlite").wrap(opened(provider), "test").complete(prompts(5), FEW)
    assert numbers(answers) == list(range(5))
    assert len(provider.batches) == 1


def test_a_batch_that_was_never_made_is_made_anew(provider: Any, tmp_path: Path) -> None:
    provider.scripted = [lambda: Response("{}", 503)]
    with pytest.raises(KilledError):
        Ledger(tmp_path / "ledger.sqlite").wrap(opened(provider, 0), "test").complete(prompts(5), FEW)
    provider.batches.clear()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert numbers(ledger.wrap(opened(provider), "test").complete(prompts(5), FEW)) == list(range(5))
    assert ledger.lost() == []


def test_a_budget_holds_for_batches_too(provider: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(dollars=0.06))
    with pytest.raises(BudgetReached, match=r"0.06 dollars"):
        ledger.wrap(opened(provider), "test").complete(prompts(300), FEW)
    dollars = provider.stats()["dollars"] / 2
    assert 0.03 < dollars <= 0.06
    assert len(provider.batches) > 1, "what the first left of the budget went into another"
    assert ledger.spent().dollars == pytest.approx(dollars)


def test_calls_whose_time_is_measured_are_made_at_once_at_the_full_price(provider: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    alone = ledger.wrap(opened(provider), "test").anew("latency")
    assert numbers(alone.complete(prompts(2), FEW)) == [0, 1]
    assert provider.batches == {}
    assert ledger.bills()[0].dollars == pytest.approx(provider.stats()["dollars"])


def test_without_a_ledger_batches_work_as_well(provider: Any) -> None:
    assert numbers(opened(provider).complete(prompts(3), FEW)) == [0, 1, 2]
    assert opened(provider).complete([], FEW) == []


def test_a_server_without_batches_is_told_and_nothing_counts(provider: Any, tmp_path: Path) -> None:
    engine, ledger = opened(provider), Ledger(tmp_path / "ledger.sqlite")
    engine.caller.base_url += "/other"
    with pytest.raises(UserError, match="404") as caught:
        ledger.wrap(engine, "test").complete(prompts(3), FEW)
    assert "batch: false" in caught.value.hint
    assert ledger.lost() == []
    assert ledger.spent().tokens == 0


def test_rows_that_fail_while_others_wait_for_the_budget_are_sent_again(provider: Any, tmp_path: Path) -> None:
    provider.plan = Plan(shares={"error": 0.5}, most_faults=2)
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(tokens=1000))
    with pytest.raises(BudgetReached, match="1000 tokens"):
        ledger.wrap(opened(provider), "test").complete(prompts(100), FEW)
    assert len(provider.batches) > 2
    assert 500 < provider.stats()["tokens"] == ledger.spent().tokens <= 1000
