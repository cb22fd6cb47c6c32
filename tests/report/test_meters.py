"""What the meters say of answers whose faults are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from supertiny.core.records import Answer, Call, Cost, Example, Request, Tool
from supertiny.core.scoring import wilson_interval
from supertiny.report.meters import NO_CALL, Measurement, cost, figures, function_of, measure, quality
from supertiny.report.settings import Settings
from tests.report.fakes import TOOLS, FakeAnswerer, Replaying

TOOL_MAP = {tool.name: tool for tool in TOOLS}
SETTINGS = Settings(latency_requests=12, warm_up_requests=2, batch_requests=25)


def golds_of(examples: Sequence[Example]) -> dict[str, Example]:
    return {example.request.id: example for example in examples}


def requests_of(examples: Sequence[Example]) -> list[Request]:
    return [example.request for example in examples]


def test_quality_counts_what_is_right(examples: list[Example]) -> None:
    answers = FakeAnswerer("student", golds_of(examples), 6).answer(requests_of(examples))
    found = quality(answers, examples, TOOL_MAP)
    # Rows 0, 6, ..., 54 are wrong: 10 of 60.
    assert found["n"] == 60
    assert found["exact"] == pytest.approx(50 / 60)
    assert (found["exact_low"], found["exact_high"]) == wilson_interval(50, 60)
    # Wrong rows alternate between light_on (0, 12, ...) and get_time (6, 18, ...): the function is right in all.
    assert found["function_accuracy"] == 1.0
    assert found["by_function"]["light_on"] == {"hits": 10, "n": 15}
    assert found["by_function"]["get_time"] == {"hits": 10, "n": 15}
    assert (found["no_call_exact"], found["no_call_n"]) == (1.0, 15)
    assert sum(part["n"] for part in found["by_function"].values()) == 60


def test_an_unreadable_answer_is_no_right_refusal() -> None:
    silent = Example(Request.from_text("x", "a"), Answer(()))
    found = quality([Answer(()), Answer(readable=False)], [silent, replace(silent)], TOOL_MAP)
    assert (found["exact"], found["no_call_exact"], found["function_accuracy"]) == (0.5, 0.5, 0.5)


def test_argument_f1_is_micro_averaged() -> None:
    request = Request.from_text("x", "a")
    gold = Example(request, Answer((Call("light_on", {"area": "kitchen", "level": 3}),)))
    silent = Example(replace(request, id="b"), Answer(()))
    answers = [Answer((Call("light_on", {"area": "kitchen"}),)), Answer((Call("get_time"),))]
    found = quality(answers, [gold, silent], TOOL_MAP)
    # Items: said {call, area} and {call}; gold {call, area, level} and none; shared 2.
    assert found["argument_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["exact"] == 0.0
    assert found["no_call_exact"] == 0.0
    assert found["function_accuracy"] == 0.5


def test_values_are_compared_by_the_functions_that_a_request_brings() -> None:
    own = Tool("pay", "", {"type": "object", "properties": {"sum": {"type": "number"}}})
    gold = Example(replace(Request.from_text("x", "a"), tools=(own,)), Answer((Call("pay", {"sum": 5}),)))
    found = quality([Answer((Call("pay", {"sum": "5"}),))], [gold], TOOL_MAP)
    assert (found["exact"], found["argument_f1"], found["similarity"]) == (1.0, 1.0, 1.0)


def test_a_number_written_as_a_string_is_exact_where_the_schema_says_number() -> None:
    gold = Example(Request.from_text("x", "a"), Answer((Call("light_on", {"area": "客厅", "level": 67}),)))
    said = [Answer((Call("light_on", {"level": "67", "area": "客厅"}),))]
    assert quality(said, [gold], TOOL_MAP)["exact"] == 1.0


def test_all_rows_are_answered_in_batches_and_latency_one_at_a_time(examples: list[Example]) -> None:
    answerer = FakeAnswerer("student", golds_of(examples), 6)
    ticks: list[float] = []
    measured = measure(answerer, requests_of(examples), SETTINGS, 7, ticks.append)
    assert answerer.batches == [1] * 14 + [25, 25, 10]
    assert ticks == [25, 25, 10]
    assert len(measured.latencies) == 12
    assert all(seconds > 0 for seconds in measured.latencies)
    assert len(measured.answers) == 60
    assert not measured.from_ledger


def test_latency_is_measured_on_what_really_computes(examples: list[Example]) -> None:
    answerer = Replaying("pipeline", golds_of(examples), 6)
    measured = measure(answerer, requests_of(examples), SETTINGS, 7)
    assert answerer.batches == [25, 25, 10]
    assert answerer.bare.batches == [1] * 14
    assert measured.from_ledger


def test_slow_answerers_are_timed_on_fewer_requests(examples: list[Example]) -> None:
    answerer = FakeAnswerer("pipeline", golds_of(examples), 6)
    hurried = replace(SETTINGS, latency_requests=40, latency_seconds=1e-9)
    assert len(measure(answerer, requests_of(examples), hurried, 7).latencies) == 10


def test_the_latency_sample_follows_the_seed(examples: list[Example]) -> None:
    asked: dict[int, list[list[str]]] = {}

    class Listening(FakeAnswerer):
        def answer(self, requests: Sequence[Request]) -> list[Answer]:
            runs[-1].append(requests[0].id)
            return super().answer(requests)

    for seed in (7, 7, 8):
        runs = asked.setdefault(seed, [])
        runs.append([])
        measure(Listening("student", golds_of(examples), 6), requests_of(examples), SETTINGS, seed)
    assert asked[7][0] == asked[7][1]
    assert asked[7][0] != asked[8][0]
    assert len(set(asked[7][0][:14])) == 14


def test_an_answerer_that_loses_a_request_is_a_bug(examples: list[Example]) -> None:
    class Losing(FakeAnswerer):
        def answer(self, requests: Sequence[Request]) -> list[Answer]:
            return super().answer(requests)[: len(requests) - (len(requests) > 1)]

    with pytest.raises(ValueError, match="gave 24 answers to 25"):
        measure(Losing("student", golds_of(examples), 6), requests_of(examples), SETTINGS, 7)


def measurement(from_ledger: bool, each: Cost) -> Measurement:
    return Measurement("pipeline", (Answer(cost=each), Answer(cost=each)), (0.1,), 3.0, from_ledger, 5)


def test_replayed_answers_cost_what_they_cost_when_they_were_computed() -> None:
    found = cost(measurement(True, Cost(0, 7.2, 900, 20, 800)), dollars_per_hour=0.5)
    assert found["seconds_per_request"] == pytest.approx(7.2)
    assert found["dollars_per_1000"] == pytest.approx(1000 * 7.2 / 3600 * 0.5)
    assert (found["tokens_in"], found["tokens_out"], found["tokens_cached"]) == (900, 20, 800)
    assert found["seconds_from"] == "ledger"


def test_computed_answers_cost_the_wall_time_of_the_batch_since_their_own_seconds_overlap() -> None:
    found = cost(measurement(False, Cost(0, 7.2)), dollars_per_hour=0.5)
    assert found["seconds_per_request"] == pytest.approx(1.5)
    assert found["dollars_per_1000"] == pytest.approx(1000 * 1.5 / 3600 * 0.5)


def test_an_answerer_with_a_price_of_its_own_keeps_it() -> None:
    found = cost(measurement(True, Cost(0.002, 7.2)), dollars_per_hour=0.5)
    assert found["dollars_per_1000"] == pytest.approx(2.0)
    assert found["dollars_from"] == "answerer"


def test_a_measurement_survives_the_disk(examples: list[Example]) -> None:
    measured = measure(
        FakeAnswerer("student", golds_of(examples), 6, Cost(0, 1, 2, 3)), requests_of(examples), SETTINGS, 7
    )
    again = Measurement.from_json(json.loads(json.dumps(measured.to_json())))
    assert again == measured


def test_an_entry_has_what_acceptance_relies_on(examples: list[Example]) -> None:
    measured = measure(FakeAnswerer("student", golds_of(examples), 6), requests_of(examples), SETTINGS, 7)
    entry = figures(replace(measured, bytes=9), examples, TOOL_MAP, 0.1)
    keys = {"name", "exact", "exact_low", "exact_high", "n", "argument_f1", "p50_seconds", "p95_seconds", "bytes"}
    assert keys | {"tokens_in", "tokens_out", "dollars_per_1000"} <= set(entry)
    assert 0 < entry["p50_seconds"] <= entry["p95_seconds"]
    assert entry["bytes"] == 9


def test_functions_are_named_alike_in_any_order() -> None:
    assert function_of([Call("b"), Call("a")]) == "a + b"
    assert function_of([]) == NO_CALL
