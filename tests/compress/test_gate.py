"""The promotion gate on rows whose outcome is known: it lets through what it should, and says what broke."""

from __future__ import annotations

from math import comb

import pytest

from supertiny.compress.gate import Gate, Sitting, calibration_error, mcnemar

N = 200


def hits(wrong: int, n: int = N) -> tuple[float, ...]:
    return tuple(float(place >= wrong) for place in range(n))


def test_the_same_answers_are_promoted() -> None:
    verdict = Gate().judge(Sitting(hits(20)), Sitting(hits(20)), 0)
    assert verdict["promoted"]
    assert verdict["exact"]["mean"] == verdict["exact"]["low"] == verdict["exact"]["high"] == 0
    assert verdict["exact"]["p"] == 1


def test_the_lower_end_counts_not_the_mean() -> None:
    """Six of 200 rows lost are three points, and may be nearly six."""
    worse = Sitting(hits(26))
    assert not Gate(margin=0.05).judge(Sitting(hits(20)), worse, 0)["promoted"]
    assert Gate(margin=0.06).judge(Sitting(hits(20)), worse, 0)["promoted"]
    many = Sitting(hits(200, 2000)), Sitting(hits(260, 2000))
    assert Gate(margin=0.05).judge(*many, 0)["promoted"], "with more rows three points are surely less than five"


def sittings(lost: int, gained: int, n: int) -> tuple[Sitting, Sitting]:
    """A student and a candidate that lost and gained so many of n rows."""
    same = (1.0,) * (n - lost - gained)
    return (
        Sitting((*(1.0,) * lost, *(0.0,) * gained, *same)),
        Sitting((*(0.0,) * lost, *(1.0,) * gained, *same)),
    )


@pytest.mark.parametrize(
    ("lost", "gained", "n", "promoted"),
    [
        *((5, 5, 40, True), (3, 0, 40, True), (3, 1, 40, True), (5, 0, 40, True)),
        *((6, 0, 40, False), (12, 5, 40, False), (5, 0, 8, False), (4, 0, 4, False), (6, 0, 99, False)),
    ],
)
def test_few_rows_are_refused_for_more_than_chance_alone(lost: int, gained: int, n: int, promoted: bool) -> None:
    assert Gate().judge(*sittings(lost, gained, n), 0)["promoted"] is promoted


def test_the_margin_of_few_rows_is_five_of_them_or_more_where_more_is_asked() -> None:
    assert Gate().judge(*sittings(1, 0, 40), 0)["margin"] == 0.125
    assert Gate(margin=0.2).judge(*sittings(8, 0, 40), 0)["promoted"]
    assert Gate(margin=1).judge(*sittings(40, 0, 40), 0)["promoted"]


def test_a_margin_stricter_than_five_rows_is_kept_where_there_are_enough() -> None:
    verdict = Gate(margin=0.01).judge(*sittings(2, 0, 100), 0)
    assert (verdict["margin"], verdict["promoted"]) == (0.01, False)
    assert Gate(margin=0).judge(*sittings(0, 2, 100), 0)["promoted"]


def test_a_better_one_is_promoted_however_different() -> None:
    assert Gate().judge(Sitting(hits(40)), Sitting(hits(10)), 0)["promoted"]


def test_a_broken_model_is_refused_in_words() -> None:
    verdict = Gate().judge(Sitting(hits(0)), Sitting(hits(60)), 0)
    assert not verdict["promoted"]
    (told,) = verdict["broke"]
    assert "exact calls went from 100.0 to 70.0 %" in told
    assert "-30.0 points" in told
    assert "n 200" in told
    assert verdict["exact"]["p"] < 1e-10


def test_a_trust_meter_that_fell_is_told_though_exact_calls_hold() -> None:
    before = Sitting(hits(0), meters={"typos": hits(0, 100), "refusal": hits(0, 10)})
    after = Sitting(hits(0), meters={"typos": hits(20, 100), "refusal": hits(0, 10)})
    verdict = Gate().judge(before, after, 0)
    assert verdict["exact"]["ok"]
    assert [row["name"] for row in verdict["trust"] if not row["ok"]] == ["typos"]
    assert verdict["broke"][0].startswith("typos went from 100.0 to 80.0 %")
    assert Gate(trust_margin=0.2).judge(before, after, 0)["promoted"]


def test_a_trust_meter_of_few_rows_is_refused_only_where_it_surely_fell() -> None:
    """One row of ten is ten points, but may be chance."""
    before, after = Sitting(hits(0), meters={"names": hits(0, 10)}), Sitting(hits(0), meters={"names": hits(1, 10)})
    assert Gate().judge(before, after, 0)["promoted"]


@pytest.mark.parametrize(("lost", "promoted"), [(4, True), (5, False)])
def test_a_trust_meter_breaks_by_five_rows_at_least(lost: int, promoted: bool) -> None:
    before, after = (Sitting(hits(0), meters={"names": hits(wrong, 16)}) for wrong in (0, lost))
    verdict = Gate().judge(before, after, 0)
    assert verdict["trust"][0]["high"] < 0
    assert verdict["promoted"] is promoted


def test_confidence_that_no_longer_means_anything_is_told() -> None:
    right = hits(50)
    known = tuple(0.9 if hit else 0.1 for hit in right)
    verdict = Gate().judge(Sitting(right, known), Sitting(right, (0.99,) * N), 0)
    assert [row["name"] for row in verdict["trust"]] == ["calibration"]
    assert not verdict["promoted"]
    assert Gate().judge(Sitting(right, (0.99,) * N), Sitting(right, known), 0)["promoted"]
    assert Gate().judge(Sitting(right, None), Sitting(right, known), 0)["trust"] == []


def test_without_rows_there_is_nothing_to_hold_but_trust() -> None:
    verdict = Gate().judge(Sitting(()), Sitting(()), 0)
    assert (verdict["promoted"], verdict["exact"]) == (True, None)
    before, after = (Sitting((), meters={"refusal_general": hits(wrong, 24)}) for wrong in (0, 20))
    verdict = Gate().judge(before, after, 0)
    assert verdict["broke"][0].startswith("refusal_general went from 100.0 to 16.7 %")


def test_confidence_that_is_no_number_is_none() -> None:
    right, sure = hits(10), (0.95,) * N
    broken = (float("nan"),) * N
    verdict = Gate().judge(Sitting(right, sure), Sitting(right, broken), 0)
    assert verdict["broke"][0].startswith("calibration went from 91.0 to 5.0 %")
    assert Gate().judge(Sitting(right, broken), Sitting(right, sure), 0)["promoted"]
    assert Gate().judge(Sitting(right, broken), Sitting(right, broken), 0)["promoted"]


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_all_equal_answers_are_promoted_at_any_margin(margin: float) -> None:
    for one in (hits(0), hits(N), hits(0, 1), hits(1, 1)):
        assert Gate(margin=margin, trust_margin=margin).judge(Sitting(one), Sitting(one), 0)["promoted"]


def test_rows_that_do_not_pair_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="cannot pair"):
        Gate().judge(Sitting(hits(0)), Sitting(hits(0, 10)), 0)


def test_mcnemar_is_the_exact_binomial() -> None:
    left, right = hits(8, 50), (*hits(0, 8), *(0.0, 0.0), *hits(0, 40))
    assert mcnemar(left, right) == pytest.approx(2 * sum(comb(10, k) for k in range(3)) / 2**10)
    assert mcnemar(left, right) == mcnemar(right, left)
    assert mcnemar(left, left) == 1


def test_calibration_error() -> None:
    assert calibration_error((0.75,) * 4, (1, 1, 1, 0)) == pytest.approx(0)
    assert calibration_error((1.0,) * 4, (1, 1, 0, 0)) == pytest.approx(0.5)
    sure, right = (0.2,) * 50 + (1.0,) * 50, (1.0,) * 10 + (0.0,) * 40 + (1.0,) * 50
    assert calibration_error(sure, right) == pytest.approx(0.16)  # bins of ten rows, in the order of the rows
    assert calibration_error(sure[::-1], right) > 0.5


def test_what_was_measured_is_read_back() -> None:
    sitting = Sitting((1.0, 0.0), (0.5, 0.25), {"typos": (1.0,)})
    assert Sitting.from_json(sitting.to_json()) == sitting
