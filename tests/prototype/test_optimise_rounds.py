"""Rounds of a search: how many rows, who goes on, what is on the front and what is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supertiny.prototype.search.examiner import Measured
from supertiny.prototype.search.halving import by_quality, round_rows, survivors
from supertiny.prototype.search.outcome import choose, front
from supertiny.prototype.search.settings import Settings as Search
from supertiny.prototype.search.space import Candidate


def measured(name: str, hits: Sequence[float], seconds: float = 1.0, dollars: float = 0.0) -> Measured:
    n = len(hits)
    return Measured(Candidate((name,), "openvino", "compact"), list(hits), list(hits), [dollars] * n, [seconds] * n)


def right(count: int, n: int = 40, lucky: int = 0) -> list[float]:
    """So many exact answers, from row `lucky` on and around the end."""
    hits = [1.0] * count + [0.0] * (n - count)
    return hits[n - lucky :] + hits[: n - lucky]


def names(several: Sequence[Measured]) -> list[str]:
    return [str(one.candidate.steps[0]) for one in several]


def go_on(several: Sequence[Measured], **search: Any) -> list[str]:
    return names(survivors(several, several[0], Search(**search), 1))


@given(st.integers(1, 300), st.integers(1, 2000), st.integers(2, 5), st.integers(2, 40))
def test_rounds_rise_to_all_rows(candidates: int, rows: int, keep: int, least: int) -> None:
    plan = round_rows(candidates, rows, keep, least)
    assert plan == sorted(plan)
    assert plan[-1] == rows
    assert len(plan) == 1 or plan[0] >= least
    assert all(after <= keep * before for before, after in pairwise(plan))
    assert keep ** (len(plan) - 2) < candidates or len(plan) == 1, "no more rounds than the pipelines want"


def test_rounds_of_a_usual_search() -> None:
    assert round_rows(20, 262, 3, 12) == [30, 88, 262]
    assert round_rows(9, 262, 3, 12) == [30, 88, 262]
    assert round_rows(1, 262, 3, 12) == [262]
    assert round_rows(20, 10, 3, 12) == [10]


def test_the_best_third_goes_on_and_the_recipes_own() -> None:
    assert go_on([measured(str(n), right(20 + n, lucky=n)) for n in range(9)]) == ["8", "7", "6", "0"]
    several = [measured(str(n), right(4 * n)) for n in range(9)]
    assert go_on(several) == ["8", "0"], "7 and 6 are within the third, but 8 beats them for certain and costs no more"
    dearer = [measured(str(n), right(4 * n), seconds=1.0 + n) for n in range(9)]
    assert go_on(dearer) == ["8", "7", "6", "0"], "here it costs more"


def test_a_cheap_one_stays_where_rows_do_not_tell_it_from_the_best() -> None:
    several = [measured("own", right(10)), *(measured(f"dear {n}", right(30 + n, lucky=n)) for n in range(4))]
    cheap = measured("cheap", right(29, lucky=20), seconds=0.2)
    poor = measured("poor", right(2), seconds=0.1)
    assert go_on([*several, cheap, poor]) == ["dear 3", "dear 2", "dear 1", "cheap", "own"]


def test_those_over_a_limit_go_and_the_best_below_it_stays() -> None:
    several = [
        measured("own", right(5), seconds=9.0),
        measured("best", right(40), seconds=9.0),
        measured("near", right(39), seconds=2.2),
        measured("below", right(10), seconds=1.9),
    ]
    assert set(go_on(several, seconds_at_most=2.0)) == {"near", "below", "own"}
    assert "best" in go_on(several, seconds_at_most=0.1), "where none keeps to it, all are compared"


def test_the_front_is_what_nothing_beats() -> None:
    best = measured("best", right(40), 3.0, 3.0)
    fast = measured("fast", right(30), 1.0, 3.0)
    cheap = measured("cheap", right(30), 2.0, 1.0)
    beaten = measured("beaten", right(30), 3.0, 2.0)
    twin = measured("twin", right(40), 3.0, 3.0)
    assert names(front([beaten, cheap, fast, best, twin])) == ["best", "twin", "fast", "cheap"]


def test_luck_on_few_rows_is_no_place_on_the_front() -> None:
    whole = measured("whole", [1.0] * 10 + [0.0, 1.0] * 15, 1.0)
    lucky = measured("lucky", [1.0] * 10, 2.0)
    assert lucky.mean("hits") > whole.mean("hits")
    assert names(front([lucky, whole])) == ["whole"]
    cheap = measured("cheap", [1.0] * 10, 0.5)
    assert names(front([cheap, whole])) == ["cheap", "whole"]


def test_the_choice_is_the_cheapest_of_those_that_are_good_enough() -> None:
    best, good, cheap = (measured(str(n), right(n), float(n), float(n)) for n in (40, 38, 20))
    several = [cheap, good, best]
    assert choose(several, Search()) is best
    assert choose(several, Search(tolerance=0.05)) is good
    assert choose(several, Search(tolerance=0.5)) is cheap
    assert choose(several, Search(seconds_at_most=39.0)) is good
    assert choose(several, Search(dollars_at_most=39.0, seconds_at_most=21.0)) is cheap
    assert choose(several, Search(seconds_at_most=1.0)) is None
    equal = measured("equal", right(40), 1.0, 39.0)
    assert choose([*several, equal], Search()) is equal
    long, short = measured("long", right(40), 1.0, 1.0), measured("short", right(40), 1.03, 1.0)
    long.candidate = replace(long.candidate, steps=("fill", "check"))
    assert choose([long, short], Search()) is short, "a step that adds nothing is not kept for the clock's noise"


def test_ties_in_exact_answers_go_by_nearness_to_gold() -> None:
    near, far = measured("near", right(10), 2.0), measured("far", right(10), 1.0)
    near.similar = [0.9] * 40
    assert names(by_quality([far, near])) == ["near", "far"]


def test_a_difference_is_that_of_the_rows_that_both_have() -> None:
    long, short = measured("long", [0.0] * 4 + [1.0] * 36), measured("short", [0.0] * 4)
    assert long.above(short, 1) == (0.0, 0.0, 0.0)
    assert short.above(long, 1)[0] == 0.0
    assert measured("x", right(40)).above(measured("y", right(0)), 1) == pytest.approx((1.0, 1.0, 1.0))
