"""Labelling by a hosted model, ended by kill -9 again and again, against a server in a process of its own."""

import pytest

from benchmarks._estimating import WRONG_EVERY, estimate_errors
from benchmarks.faults import enough, faulty_run, server_of, throughput

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("all_cores")]


def test_killed_at_random_moments_nothing_is_lost_or_paid_twice():
    seen = faulty_run(120, kills=4, seed=3, budget=enough(120, kills=4), honours=True)
    assert (seen["kills"], seen["stopped"]) == (4, False)
    assert (seen["lost"], seen["paid_twice"], seen["over"]) == (0, 0, False)
    assert seen["faulty_share"] > 0.2
    assert seen["lost_answers"] > 0
    assert seen["used"]["dollars"] <= seen["told"]["dollars"]


@pytest.mark.parametrize("budget", [{"dollars": 0.2}, {"tokens": 7000}, {"minutes": 0.1}])
def test_killed_and_billed_again_a_budget_ends_the_run_and_holds(budget):
    seen = faulty_run(300, kills=2, seed=4, budget=budget, honours=False)
    ((kind, most),) = budget.items()
    assert seen["kills"] > 0
    assert seen["stopped"]
    assert seen["lost"] > 0, "the budget was to be too small"
    assert 0.1 * most < seen["used"][kind] <= most
    assert seen["told"][kind] <= most
    if kind != "minutes":
        assert seen["used"][kind] <= seen["told"][kind]


def test_a_server_without_faults_is_kept_busy():
    share, client_seconds = throughput(192, delay_seconds=1.0)
    assert 0.5 < share <= 1
    assert client_seconds < 0.05


def test_an_estimate_of_the_default_steps_is_near_what_is_spent(tmp_path):
    with server_of({"wrong_every": WRONG_EVERY}) as url:
        found = estimate_errors(url, tmp_path, requests=300)
    assert found["requests"] >= 300
    assert found["error"] <= 0.15
    assert found["corrected_error"] <= 0.15
