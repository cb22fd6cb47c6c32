"""Labelling by a hosted model, ended by kill -9 again and again, against a server in a process of its own."""

import pytest

from benchmarks.faults import faulty_run, throughput


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost_or_paid_twice():
    seen = faulty_run(120, kills=4, seed=3, budget=1.0, honours=True)
    assert seen["kills"] == 4
    assert (seen["lost"], seen["paid_twice"], seen["over"]) == (0, 0, False)
    assert seen["faulty_share"] > 0.2
    assert seen["lost_answers"] > 0
    assert seen["dollars"] <= seen["told"]


@pytest.mark.slow
def test_killed_and_billed_again_the_budget_still_holds():
    seen = faulty_run(300, kills=2, seed=4, budget=0.2, honours=False)
    assert seen["kills"] > 0
    assert 0.02 < seen["dollars"] <= seen["told"] <= 0.2
    assert seen["lost"] > 0, "the budget was to be too small"


@pytest.mark.slow
def test_a_server_without_faults_is_kept_busy():
    share, client_seconds = throughput(64, delay_seconds=0.2)
    assert 0 < share <= 1
    assert client_seconds > 0
