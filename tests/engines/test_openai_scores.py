"""Scores by a hosted engine behind the ledger: billed with their prompts, within the budget, each kept as it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from benchmarks._faulty_server import Plan, usage_of
from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.records import Prompt
from supertiny.prototype.token_scores import summed_logprobs
from tests.engines.test_openai_money import opened


def pairs(count: int) -> list[tuple[Prompt, str]]:
    """The server scores this text alone."""
    return [(Prompt(({"role": "user", "content": f"light {number} " + "x" * 200},)), "ab") for number in range(count)]


@pytest.fixture
def scoring(server: Any) -> Any:
    server.usage = usage_of
    return server


def test_what_the_server_reads_and_writes_is_billed(scoring: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    found = summed_logprobs(ledger.wrap(opened(scoring, dialect="vllm"), "test"), pairs(9))
    assert [(one.logprob, one.tokens) for one in found] == [(pytest.approx(-2.6), 2)] * 9
    seen, (bill,) = scoring.stats(), ledger.bills()
    assert (bill.calls, bill.tokens_in + bill.tokens_out) == (9, seen["tokens"])
    assert bill.tokens_in > 9 * 50
    assert sum(one.tokens_in + one.tokens_out for one in found) == seen["tokens"]
    assert bill.dollars == pytest.approx(seen["dollars"])
    asked = len(scoring.bodies)
    assert summed_logprobs(ledger.wrap(opened(scoring, dialect="vllm"), "test"), pairs(9)) == found
    assert len(scoring.bodies) == asked


@pytest.mark.parametrize("limit", [{"dollars": 0.03}, {"tokens": 2500}])
def test_a_budget_holds_with_tries_that_are_lost(limit: dict[str, Any], scoring: Any, tmp_path: Path) -> None:
    scoring.plan = Plan(shares={"cut": 0.2, "error": 0.1}, most_faults=3, honours_keys=False)
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(**limit))
    with pytest.raises(BudgetReached):
        summed_logprobs(ledger.wrap(opened(scoring, dialect="vllm", concurrency=4), "test"), pairs(200))
    ((name, most),) = limit.items()
    seen = scoring.stats()
    assert seen["billed_but_lost"] > 0
    assert 0.3 * most < seen[name] <= getattr(ledger.spent(), name) <= most


def test_scores_are_kept_that_came_before_another_failed(scoring: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ahead = summed_logprobs(ledger.wrap(opened(scoring, dialect="vllm"), "test"), pairs(1))
    answered = scoring.author
    scoring.author = lambda body: scoring.scripted.append(Response("{}", 400)) or answered(body)
    try:
        with pytest.raises(UserError, match="400"):
            summed_logprobs(ledger.wrap(opened(scoring, dialect="vllm", concurrency=1), "test"), pairs(4))
    finally:
        scoring.author = answered
    assert ledger.bills()[0].calls == 2
    assert ledger.lost() == []
    assert summed_logprobs(ledger.wrap(opened(scoring, dialect="vllm"), "test"), pairs(4))[0] == ahead[0]
    assert scoring.stats()["billed"] == 4


def test_scores_go_alone_at_the_full_price_where_the_rest_goes_in_batches(scoring: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    summed_logprobs(ledger.wrap(opened(scoring, dialect="vllm", batch=True), "test"), pairs(2))
    assert ledger.bills()[0].dollars == pytest.approx(scoring.stats()["dollars"])
