"""Project costs and break-even, worked out by hand."""

from __future__ import annotations

import pytest

from supertiny.core.ledger import Bill
from supertiny.report.costs import break_even, differences, project_costs, prompt_saving, step_prices

BILLS = [
    Bill("labelling the pool", 800, 0.0, 1800.0, 400_000, 9_000, 0),
    Bill("hosted judge", 10, 0.30, 5.0, 1_000, 100, 0),
    Bill("pipeline on test", 400, 9.0, 900.0, 1, 1, 0),
]
STAGES = {"prototype": {"seconds": 9999.0}, "transfer": {"seconds": 900.0}, "compress": {"seconds": 900.0}}


def test_one_off_is_calls_and_training_without_the_measuring_on_test() -> None:
    costs = project_costs(BILLS, (), STAGES, dollars_per_hour=2.0)
    assert [item["one_off"] for item in costs["items"]] == [True, True, False, True, True]
    assert [item["dollars"] for item in costs["items"]] == pytest.approx([1.0, 0.30, 9.0, 0.5, 0.5])
    assert costs["one_off_call_dollars"] == pytest.approx(1.30)
    assert costs["one_off_dollars"] == pytest.approx(2.30)
    assert costs["one_off_seconds"] == pytest.approx(1800 + 5 + 1800)


def test_tries_without_an_answer_are_money_too_and_said_apart() -> None:
    lost = [Bill("labelling the pool", 3, 0.25, 0.0, 900, 0, 0), Bill("pipeline on test", 1, 0.5, 0.0, 300, 0, 0)]
    costs = project_costs(BILLS, lost, STAGES, dollars_per_hour=2.0)
    said = {item["name"]: item for item in costs["items"]}
    ours = said["labelling the pool: tries without an answer, at most"]
    assert (ours["calls"], ours["dollars"], ours["one_off"]) == (3, 0.25, True)
    assert not said["pipeline on test: tries without an answer, at most"]["one_off"]
    assert costs["one_off_dollars"] == pytest.approx(2.30 + 0.25)


def test_a_purpose_that_only_contains_the_letters_of_test_is_counted() -> None:
    assert project_costs([Bill("latest pool", 1, 1.0, 1, 1, 1, 0)], (), {}, 0.1)["one_off_dollars"] == 1.0


def test_break_even_and_its_sensitivity_to_the_teachers_price() -> None:
    costs = project_costs(BILLS, (), STAGES, dollars_per_hour=2.0)
    answerers = {"pipeline": {"dollars_per_1000": 2.0}, "artifact": {"dollars_per_1000": 0.1}}
    even = break_even(answerers, costs)
    assert even is not None
    assert even["requests"] == pytest.approx(2.30 / (0.002 - 0.0001))
    half, same, twice = even["sensitivity"]
    assert half["one_off_dollars"] == pytest.approx(0.65 + 1.0)
    assert half["requests"] == pytest.approx(1.65 / (0.001 - 0.0001))
    assert same["requests"] == even["requests"]
    assert twice["requests"] == pytest.approx(3.60 / (0.004 - 0.0001))


def test_what_is_not_cheaper_is_never_earned_back() -> None:
    costs = project_costs(BILLS, (), STAGES, 2.0)
    answerers = {"pipeline": {"dollars_per_1000": 0.1}, "artifact": {"dollars_per_1000": 0.1}}
    even = break_even(answerers, costs)
    assert even is not None
    assert even["requests"] is None
    assert even["sensitivity"][2]["requests"] is not None
    assert break_even({"pipeline": {"dollars_per_1000": 0.1}}, costs) is None


def test_differences_are_left_minus_right_on_the_same_rows() -> None:
    hits = {"pipeline": [True] * 60 + [False] * 40, "student": [True] * 70 + [False] * 30, "artifact": [True] * 100}
    found = {(row["left"], row["right"]): row for row in differences(hits, seed=7)}
    assert set(found) == {("student", "pipeline"), ("artifact", "student"), ("artifact", "pipeline")}
    row = found["student", "pipeline"]
    assert row["mean"] == pytest.approx(0.1)
    assert 0 < row["low"] < 0.1 < row["high"] < 0.2
    assert row["n"] == 100
    assert differences(hits, seed=7) == differences(hits, seed=7)


def test_a_steps_price_is_its_own_or_that_of_its_time() -> None:
    def step(calls: int, dollars: float, seconds: float) -> dict[str, object]:
        return {"calls": calls, "cost": {"dollars": dollars, "seconds": seconds, "tokens_in": 8000, "tokens_out": 40}}

    pool = {"retrieve": step(0, 0.0, 0.0), "fill": step(80, 0.0, 3600.0), "check": step(8, 0.4, 10.0)}
    found = step_prices({"pool_rows": 80, "costs_by_step": {"pipeline on the pool": pool}}, dollars_per_hour=2.0)
    assert [row["name"] for row in found] == ["retrieve", "fill", "check"]
    assert [row["calls"] for row in found] == [0, 1, 0.1]
    assert [row["dollars"] for row in found] == pytest.approx([0, 2.0 / 80, 0.4 / 80])
    assert found[1]["tokens_in"] == 100
    assert step_prices({}, 2.0) == []


def test_prompt_saving_names_who_learned_the_tools() -> None:
    answerers = {"pipeline": {"tokens_in": 900}, "student": {"tokens_in": 18}, "plain_prompt": {"tokens_in": 1200}}
    saving = prompt_saving(answerers)
    assert saving is not None
    assert saving["times_fewer"] == pytest.approx(50)
    assert saving["learned_by"] == "student"
    assert prompt_saving({"student": {"tokens_in": 18}}) is None
