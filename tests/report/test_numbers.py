"""Numbers as people read them."""

from __future__ import annotations

import pytest

from supertiny.report import numbers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.00042, "0.42 ms"),
        (0.0042, "4.2 ms"),
        (0.0123, "12.3 ms"),
        (0.145, "145 ms"),
        (0.9999, "1.00 s"),
        (1.234, "1.23 s"),
        (61.0, "61.0 s"),
        (150.0, "2.5 min"),
        (9000.0, "2.5 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "–"),
        (512, "512 B"),
        (2_500, "2.50 kB"),
        (78_200_000, "78.2 MB"),
        (999_999_999, "1.00 GB"),
        (986e6, "986 MB"),
    ],
)
def test_size(count: float, text: str) -> None:
    assert numbers.size(count) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0"),
        (0.000812, "$0.00081"),
        (0.0331, "$0.033"),
        (0.5, "$0.50"),
        (12.3, "$12.30"),
        (12_345.6, "$12,346"),
        (-2, "−$2.00"),
        (None, "–"),
    ],
)
def test_dollars(amount: float | None, text: str) -> None:
    assert numbers.dollars(amount) == text


@pytest.mark.parametrize(
    ("difference", "text"), [(0.003, "+0.3"), (-0.0119, "−1.2"), (0.0001, "0.0"), (-0.0001, "0.0"), (0.47, "+47.0")]
)
def test_points(difference: float, text: str) -> None:
    assert numbers.points(difference) == text


def test_counts_ratios_shares_and_ticks() -> None:
    assert numbers.count(18.26) == "18.3"
    assert numbers.count(18.0) == "18"
    assert numbers.count(2060.4) == "2,060"
    assert numbers.count(2_414_000) == "2.41 million"
    assert numbers.times(41.2) == "41×"
    assert numbers.times(3.44) == "3.4×"
    assert numbers.percent(0.7123) == "71.2 %"
    assert numbers.interval(0.666, 0.754) == "66.6–75.4"
    assert [numbers.dollar_tick(10.0**power) for power in (-3, 0, 1)] == ["$0.001", "$1", "$10"]
    assert [numbers.duration_tick(10.0**power) for power in (-4, -2, 0)] == ["0.1 ms", "10 ms", "1 s"]
