"""The nearest-example index that the floor and the teacher's retrieval share."""

from __future__ import annotations

import pytest

from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Example, Request

TEXTS = ("turn on the kitchen lights", "what is the weather", "включи свет на кухне", "打开厨房的灯", "😀", "")


@pytest.fixture
def index() -> NearestExamples:
    return NearestExamples([Example(Request.from_text(text, str(i))) for i, text in enumerate(TEXTS)])


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ("switch on kitchen light", 0),
        ("how is the weather today", 1),
        ("включи пожалуйста свет", 2),
        ("打开灯", 3),
        ("😀", 4),
        ("", 5),
    ],
)
def test_finds_the_example_that_reads_alike_in_every_script(index: NearestExamples, asked: str, place: int) -> None:
    assert index.nearest([asked], 1)[0][0][0] == place


def test_an_example_is_nearest_to_itself_with_similarity_one(index: NearestExamples) -> None:
    for place, found in enumerate(index.nearest(TEXTS, 2)):
        assert found[0][0] == place
        assert found[0][1] == pytest.approx(1.0, abs=1e-5)
        assert 0.0 <= found[1][1] < 1.0


def test_most_similar_come_first_and_ties_keep_the_order_of_examples(index: NearestExamples) -> None:
    found = index.nearest(["zzz"], 6)[0]
    assert found == [(place, 0.0) for place in range(6)]
    similarities = [similarity for _, similarity in index.nearest(["the kitchen weather"], 6)[0]]
    assert similarities == sorted(similarities, reverse=True)


def test_asking_for_more_than_there_are_gives_all_and_nothing_gives_nothing(index: NearestExamples) -> None:
    assert len(index.nearest(["weather"], 99)[0]) == len(TEXTS)
    assert index.nearest(["weather"], 0) == [[]]
    assert index.nearest([], 3) == []
    assert NearestExamples([]).nearest(["weather"], 3) == [[]]


def test_many_texts_at_once_find_the_same_as_one_by_one(index: NearestExamples) -> None:
    many = index.nearest(list(TEXTS) * 120, 2)
    assert len(many) == 720
    assert many[:6] == many[-6:]
