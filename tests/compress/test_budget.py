"""A budget as people type it: units, limits, and what is said of mistakes."""

from __future__ import annotations

import math

import pytest

from supertiny.compress.budget import Budget, rounded_up, written
from supertiny.core.errors import UserError, UserErrors


def test_units_are_read() -> None:
    assert Budget.read("bytes<=60MB, p50<=25ms, drop<=1pt") == Budget(60e6, 0.025, 0.01)
    assert Budget.read("bytes ≤ 2 MiB,p50<1.5s,drop<=0%") == Budget(2 * 2**20, 1.5, 0.0)
    assert Budget.read("parameters<=100M") == Budget(parameters=1e8)
    assert (
        Budget.read(" bytes  <= 60 MB ,p50 <= 0.025 s") == Budget.read("bytes<=60MB,p50<=25ms") == Budget(60e6, 0.025)
    )
    assert Budget.read("bytes<=60mb").limits() == {"bytes": 60e6}


def test_what_is_told_can_be_typed() -> None:
    budget = Budget.read("bytes<=61.5MB, p50<=25ms, drop<=1.5pt, parameters<=98M")
    assert Budget.read(budget.told()) == budget


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("byts<=60MB", "'byts' .*did you mean 'bytes'"),
        ("bytes<=60MG", "unit 'MG' .*did you mean 'MB'"),
        ("bytes<=60", "bytes needs a unit"),
        ("p50<=25", "p50 needs a unit"),
        ("bytes>=60MB", "upper ones"),
        ("bytes", "no limit"),
        ("", "no limit"),
        ("bytes<=-3MB", "above 0; found -3"),
        ("bytes<=0MB", "above 0"),
        ("drop<=-1pt", "at least 0"),
        ("p50<=1.2.3ms", "no number"),
        ("bytes<=1MB, bytes<=2MB", "twice"),
        ("bytes<=1MB, bytes <= 1 MB", "twice"),
        ("bytes<=1e308GB", "above 0; found 1e308"),
        ("p50<=nan ms", "above 0; found nan"),
        ("bytes<=60MB,", "'' is no limit"),
    ],
)
def test_a_mistake_is_told(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Budget.read(text)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserErrors) as caught:
        Budget.read("byts<=60MB, p50<=25")
    assert len(caught.value.errors) == 2


def test_excess_says_by_how_much() -> None:
    budget = Budget(60e6, 0.025, 0.01)
    assert budget.excess({"bytes": 60e6, "p50": 0.025, "drop": 0.01}) == {}
    over = budget.excess({"bytes": 90e6, "p50": 0.05, "drop": 0.03})
    assert over == pytest.approx({"bytes": 0.5, "p50": 1.0, "drop": 2.0})
    assert budget.excess({"bytes": 1.0, "p50": None, "drop": -0.5}) == {"p50": math.inf}
    assert Budget().excess({"bytes": 1e12}) == {}


def test_values_are_written_with_their_units() -> None:
    assert [written("bytes", 60e6), written("p50", 0.0254), written("p50", 2.0), written("drop", 0.015)] == [
        "60MB",
        "25.4ms",
        "2s",
        "1.5pt",
    ]
    assert written("parameters", 135e6) == "135M"
    assert written("p50", 0.9996) == "1s"


@pytest.mark.parametrize(
    ("name", "value"),
    [("bytes", 60_123_456.0), ("bytes", 1_000_001.0), ("p50", 0.0123412), ("parameters", 134_515_008)],
)
def test_a_limit_that_is_told_rounded_up_is_kept_by_what_it_was_told_of(name: str, value: float) -> None:
    told = Budget.read(f"{name}<={written(name, rounded_up(value))}")
    assert told.excess({name: value}) == {}
    assert rounded_up(value) <= 1.01 * value
    assert rounded_up(rounded_up(value)) == pytest.approx(rounded_up(value))
