"""The probes: what they change, what they leave, and that they tell a good model from a bad one."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from supertiny.compress.trust import asked, exchanged, misspelt, politely, probes, read
from supertiny.core.records import Answer, Call, Request, Tool
from tests.small_task import example, examples, small_task

ROW = example("please dim the kitchen light a little to 40 percent", [Call("Dim", {"area": "Kitchen", "level": 40})])


def test_misspelt_text_keeps_what_the_gold_calls_repeat() -> None:
    seen = set()
    for seed in range(200):
        text = misspelt(ROW, random.Random(seed))
        assert "kitchen" in text.split()
        assert "40" in text.split()
        assert len(text.split()) == len(ROW.request.text.split())
        seen.add(text)
    assert len(seen) > 20
    assert ROW.request.text not in seen
    assert misspelt(ROW, random.Random(3)) == misspelt(ROW, random.Random(3))


def test_what_has_no_longer_word_stays_as_it_is() -> None:
    assert misspelt(example("客厅 on", [Call("TurnOn")]), random.Random(0)) == "客厅 on"


def test_politeness_is_added_around_the_request() -> None:
    for seed in range(50):
        text = politely(ROW, random.Random(seed))
        assert ROW.request.text in text
        assert len(text) > len(ROW.request.text)


def test_a_first_word_that_the_gold_repeats_keeps_its_case() -> None:
    row = example("Kitchen: shine!", [Call("TurnOn", {"area": "Kitchen"})])
    assert all("Kitchen: shine" in politely(row, random.Random(seed)) for seed in range(30))


def test_names_kin_and_titles_are_exchanged_with_their_case() -> None:
    assert exchanged("Call Anna and MARIA, not annabelle") == "Call Luca and CARLOS, not annabelle"
    assert exchanged({"to": ["my mother", 3], "x": None}) == {"to": ["my father", 3], "x": None}
    text = "Tell Sarah that her brother and Mr Smith wait"
    assert exchanged(exchanged(text)) == text != exchanged(text)


def answered(found: object, say: object) -> dict[str, tuple[float, ...]]:
    return read(found, [say(request) for request in asked(found)])  # type: ignore[arg-type, operator]


def test_a_model_that_always_knows_holds_everywhere_and_one_that_is_silent_only_refuses() -> None:
    task = small_task()
    gold = {row.request.id: row.answer or Answer() for row in task.valid}
    found = probes(task, task.valid, 8, 1)
    assert list(found) == ["typos", "paraphrases", "refusal_general", "names"]
    assert all(0 < len(each) <= 8 for each in found.values())
    knowing = answered(found, lambda request: gold.get(request.id, Answer()))
    assert all(set(values) == {1.0} for values in knowing.values())
    silent = answered(found, lambda request: Answer())
    assert {name: set(values) for name, values in silent.items()} == {
        "typos": {0.0},
        "paraphrases": {0.0},
        "refusal_general": {1.0},
        "names": {1.0},
    }
    eager = answered(found, lambda request: Answer((Call("TurnOn"),)))
    assert set(eager["refusal_general"]) == {0.0}
    garbled = answered(found, lambda request: Answer(readable=False))
    assert set(garbled["refusal_general"]) == {0.0}, "words that nobody can read are no refusal"


def test_refusal_is_asked_of_rows_without_a_call_where_there_are_any() -> None:
    silent = example("tell me a joke", [], "joke")
    task = small_task(valid=(*examples("valid", 4), silent))
    found = probes(task, task.valid, 8, 1)
    assert [probe.requests[0].id for probe in found["refusal"]] == ["joke"]
    assert "refusal_general" not in found


def test_the_same_call_is_expected_for_another_name() -> None:
    row = example("ring Anna", [Call("TurnOn", {"area": "Anna"})], "ring")
    task = small_task(valid=(row,))
    (probe,) = probes(task, task.valid, 8, 1)["names"]
    assert [request.text for request in probe.requests] == ["ring Anna", "ring Luca"]
    anna, luca = (Answer((Call("TurnOn", {"area": name}),)) for name in ("Anna", "Luca"))
    assert probe.holds([anna, luca])
    assert not probe.holds([anna, anna])
    assert not probe.holds([anna, Answer(readable=False)])


@pytest.mark.parametrize("valid", [(), (example("", [Call("TurnOn")]),)])
def test_without_rows_only_general_requests_are_left(valid: tuple[object, ...]) -> None:
    found = probes(small_task(valid=valid), valid, 8, 1)  # type: ignore[arg-type]
    assert list(found) == ["refusal_general"]
    assert probes(small_task(), small_task().valid, 0, 1) == {}


def test_earlier_messages_stay_as_they_are() -> None:
    messages = ({"role": "user", "content": "hello there"}, {"role": "assistant", "content": "yes?"})
    request = Request("r", (*messages, {"role": "user", "content": "lights on please in here"}))
    row = type(ROW)(request, Answer((Call("TurnOn"),)))
    for probe in probes(small_task(valid=(row,)), (row,), 4, 0)["typos"]:
        assert probe.requests[0].messages[:2] == messages


def naming_task(*areas: str, rows: tuple[str, ...]) -> Any:
    tool = Tool("TurnOn", "", {"type": "object", "properties": {"area": {"type": "string", "enum": list(areas)}}})
    texts = enumerate(rows)
    return replace(small_task(), tools=(tool,)), [example(text, [Call("TurnOn")], f"r{n}") for n, text in texts]


def test_a_name_that_the_functions_list_is_exchanged_only_for_another_that_they_list() -> None:
    rows = tuple(f"light in anna's room {n}" for n in range(5))
    task, valid = naming_task("Anna's room", "Kitchen", rows=rows)
    assert "names" not in probes(task, valid, 8, 1)
    task, valid = naming_task("Anna's room", "Luca's room", rows=rows)
    assert len(probes(task, valid, 8, 1)["names"]) == 5


def test_where_few_requests_name_anybody_others_are_asked_by_somebody() -> None:
    task, valid = naming_task("Kitchen", rows=("ring Anna", "light", "dark", "more light"))
    texts = [probe.requests[0].text for probe in probes(task, valid, 8, 1)["names"]]
    assert len(texts) == 4
    assert sum("speaking: " in text for text in texts) == 3
