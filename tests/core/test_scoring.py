"""Scores against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from supertiny.core.records import Answer, Call, Tool
from supertiny.core.scoring import (
    argument_counts,
    exact,
    f1,
    is_exact,
    paired_bootstrap,
    plain_value,
    similarity,
    typed,
    wilson_interval,
)

NUMBER, TEXT = {"type": "number"}, {"type": "string"}
TOOLS = {
    "Set": Tool("Set", "", {"type": "object", "properties": {"level": NUMBER, "code": TEXT, "area": TEXT, "list": {
        "type": "array", "items": {"type": "integer"}}, "free": True}}),
    "Go": Tool("Go", "", {"type": "object", "properties": {}}),
}  # fmt: skip


def set_to(**arguments: object) -> Call:
    return Call("Set", arguments)


@pytest.mark.parametrize("value", [67, 67.0, "67", "67.0", " 67"])
def test_numbers_as_text_are_one_number_where_the_schema_says_number(value: object) -> None:
    assert exact([set_to(level=value)], [set_to(level=67)], TOOLS)
    assert similarity([set_to(level=value)], [set_to(level=67)], TOOLS) == 1.0
    assert exact([set_to(list=[1, value])], [set_to(list=["1", 67])], TOOLS)


def test_where_the_schema_says_string_text_stays_text() -> None:
    assert not exact([set_to(code="67.0")], [set_to(code="67")], TOOLS)
    assert not exact([set_to(code=67)], [set_to(code="67")], TOOLS)


def test_what_is_not_equal() -> None:
    assert not exact([set_to(level=True)], [set_to(level=1)], TOOLS)
    assert not exact([set_to(level="high")], [set_to(level="low")], TOOLS)
    assert not exact([set_to(level=1.5)], [set_to(level=1)], TOOLS)
    assert not exact([set_to(level=2**53)], [set_to(level=2**53 + 1)], TOOLS)
    assert not exact([set_to()], [], TOOLS)
    assert not exact([Call("Go"), Call("Go")], [Call("Go")], TOOLS)
    assert not exact([set_to(area="кухня")], [set_to(area="кухня ")], TOOLS)


def test_what_nobody_could_read_is_no_right_answer() -> None:
    assert is_exact(Answer(), [], TOOLS)
    assert not is_exact(Answer(readable=False), [], TOOLS)
    assert is_exact(Answer((Call("Go"),)), [Call("Go")], TOOLS)


def test_order_of_calls_and_of_arguments_does_not_matter() -> None:
    left = [set_to(level=1, area="a"), Call("Go")]
    assert exact(left, [Call("Go"), set_to(area="a", level=1)], TOOLS)
    assert exact([], [], TOOLS)
    assert exact([Call("unknown", {"x": {"a": 1, "b": [2]}})], [Call("unknown", {"x": {"b": [2.0], "a": 1}})], TOOLS)


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), None, [], {"a": None}, "1e999"])
def test_odd_values_are_compared_and_do_not_break(value: object) -> None:
    assert exact([set_to(level=value, free=value)], [set_to(level=value, free=value)], TOOLS)
    assert not exact([set_to(level=value)], [set_to(level=3)], TOOLS)
    assert plain_value(value, True) == plain_value(value, True) or value != value  # type: ignore[arg-type]


def test_similarity_by_hand() -> None:
    gold = [set_to(level=5, area="kitchen")]
    # One of two arguments shared and equal.
    assert similarity([set_to(level=5)], gold, TOOLS) == pytest.approx(1 / 2)
    # "kitten" and "kitchen" share the subsequence "kiten": 2 * 5 / (6 + 7).
    assert similarity([set_to(level=5, area="kitten")], gold, TOOLS) == pytest.approx((1 + 10 / 13) / 2)
    # The union of names counts what is too much, too.
    assert similarity([set_to(level=5, area="kitchen", code="x")], gold, TOOLS) == pytest.approx(2 / 3)
    # A wrong number is worth nothing, not nearly right.
    assert similarity([set_to(level=6, area="kitchen")], gold, TOOLS) == pytest.approx(1 / 2)
    # Matched calls over the union of calls: 1 matched, 2 predicted, 1 gold.
    assert similarity([*gold, Call("Go")], gold, TOOLS) == pytest.approx(1 / 2)
    assert similarity([*gold, Call("Go")], [*gold, Call("Stop")], TOOLS) == pytest.approx(1 / 3)
    assert similarity([Call("Go")], gold, TOOLS) == 0.0
    assert similarity([], gold, TOOLS) == 0.0
    assert similarity([], [], TOOLS) == 1.0
    assert similarity([Call("Go")], [Call("Go")], TOOLS) == 1.0


def test_similarity_counts_every_script() -> None:
    assert similarity([set_to(area="厨房")], [set_to(area="厨具")], TOOLS) == pytest.approx(1 / 2)
    assert similarity([set_to(area="кухня")], [set_to(area="кухни")], TOOLS) == pytest.approx(4 / 5)


def test_similarity_pairs_the_best_first() -> None:
    gold = [set_to(level=1, area="hall"), set_to(level=2, area="attic")]
    predicted = [set_to(level=2, area="attic"), set_to(level=1, area="x")]
    # attic with attic is 1; then level alone is right of two: 1/2; both of two calls matched.
    assert similarity(predicted, gold, TOOLS) == pytest.approx((1 + 1 / 2) / 2)
    assert similarity(gold, predicted, TOOLS) == pytest.approx(similarity(predicted, gold, TOOLS))


def test_argument_f1_by_hand() -> None:
    counts = argument_counts([set_to(level="5", area="hall")], [set_to(level=5, area="attic")], TOOLS)
    assert counts == (2, 3, 3)  # the function and the level
    assert f1(*counts) == pytest.approx(2 / 3)
    assert argument_counts([Call("Go")], [Call("Go")], TOOLS) == (1, 1, 1)
    assert f1(0, 0, 0) == 1.0
    assert f1(0, 3, 0) == 0.0


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_against_published_values(hits: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_without_rows_nothing_is_known() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="cannot pair"):
        paired_bootstrap([], [], 0)
    with pytest.raises(ValueError, match="cannot pair 1 with 2"):
        paired_bootstrap([1], [1, 2], 0)


def test_paired_bootstrap_covers_the_true_difference() -> None:
    generator = np.random.default_rng(3)
    covered, widths = 0, []
    for trial in range(200):
        right = generator.random(150) < 0.6
        left = np.where(generator.random(150) < 0.1, generator.random(150) < 0.8, right)
        mean, low, high = paired_bootstrap(left.astype(float), right.astype(float), trial, rounds=400)  # type: ignore
        assert low <= mean <= high
        covered += low <= 0.1 * (0.8 - 0.6) <= high
        widths.append(high - low)
    assert 0.88 <= covered / 200 <= 0.99
    # Rows are drawn together: unpaired, the interval would be 0.22 wide.
    assert np.mean(widths) < 0.11


def test_paired_bootstrap_is_seeded_and_exact_where_nothing_varies() -> None:
    left, right = [1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]
    assert paired_bootstrap(left, right, 5) == paired_bootstrap(left, right, 5)
    assert paired_bootstrap(left, right, 5)[0] == pytest.approx(0.5)
    assert paired_bootstrap([1.0, 1.0], [0.0, 0.0], 1) == (1.0, 1.0, 1.0)


def test_typed_gives_text_where_the_schema_says_string_and_numbers_where_it_says_number() -> None:
    kinds = {
        "id": {"type": "string"},
        "note": {"type": ["string", "null"]},
        "level": {"type": "integer"},
        "names": {"type": "array", "items": {"type": "string"}},
        "free": {},
    }
    tool = Tool("Set", "", {"type": "object", "properties": kinds})
    given = {"id": 12345, "note": None, "level": "5", "names": [1, True, None, "x"], "free": 7}
    (call,) = typed(Answer((Call("Set", given),)), {"Set": tool}).calls
    assert call.arguments == {
        "id": "12345",
        "note": None,
        "level": 5,
        "names": ["1", "true", "null", "x"],
        "free": 7,
    }
    unknown = Answer((Call("Other", {"id": 1}),), "words")
    assert typed(unknown, {"Set": tool}) == unknown


def test_a_number_that_may_be_missing_is_a_number() -> None:
    optional = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    tools = {"Dim": Tool("Dim", "", {"type": "object", "properties": {"level": optional}})}
    assert exact([Call("Dim", {"level": "67"})], [Call("Dim", {"level": 67.0})], tools)
    assert not exact([Call("Dim", {"level": None})], [Call("Dim", {"level": 0})], tools)
    (call,) = typed(Answer((Call("Dim", {"level": "67"}),)), tools).calls
    assert call.arguments == {"level": 67}
    words = {"Say": Tool("Say", "", {"properties": {"text": {"oneOf": [{"type": "string"}, {"type": "null"}]}}})}
    assert typed(Answer((Call("Say", {"text": 12}),)), words).calls[0].arguments == {"text": "12"}
