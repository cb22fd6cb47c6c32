"""Curators that ask the teacher: `expand` and `refine`."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.records import Answer, Call, Cost, Example, Grammar, Prompt, Request, Sampling, Verdict
from supertiny.core.task import Task
from supertiny.prototype.curators._writing import read_requests, wishes_of, writing_prompt
from tests.fake_engine import FakeEngine
from tests.small_bench import curated, labels, small_bench, writes_requests
from tests.small_task import example, examples, small_task


def labelled(task: Task) -> list[Example]:
    rows = [replace(row, provenance={"source": "labelled"}) for row in task.labelled]
    return [*rows, example("tell me a joke", [], "joke", source="labelled")]


def expanded(task: Task, folder: Path, seed: int = 1, **settings: Any) -> list[Example]:
    rows = labelled(task)
    return curated({"method": "expand", **settings}, rows, task, seed, folder)[len(rows) :]


def test_expand_writes_for_every_function_and_says_where_rows_come_from(tmp_path: Path) -> None:
    task = small_task()
    made = expanded(task, tmp_path, rows=48, texts=6)
    seeds = {row.request.id: row for row in labelled(task)}
    tools = [row.answer.calls[0].tool if row.answer and row.answer.calls else "" for row in made]
    assert set(tools) == {"TurnOn", "TurnOff", "Dim", ""}
    assert len(made) >= 40
    for row, tool in zip(made, tools, strict=True):
        assert row.provenance["source"] == "expand"
        assert row.provenance["by"] == "pipeline"
        assert row.provenance["function"] == tool
        assert row.provenance["origin"] == row.provenance["from"][0]
        functions = {call.tool for id in row.provenance["from"] for call in seeds[id].answer.calls}  # type: ignore[union-attr]
        assert functions == ({tool} if tool else set()), "seeds are rows of the same function"
        assert row.verdict is not None
        assert row.verdict == task.verify(row.request, row.answer.calls if row.answer else ())
    assert expanded(task, tmp_path, rows=48, texts=6) == made
    assert expanded(task, tmp_path, rows=48, texts=6, seed=2) != made


def test_expand_asks_in_rounds_for_what_is_missing_and_binds_the_teacher_to_a_list(tmp_path: Path) -> None:
    task = small_task()
    said = iter(range(1000))
    teacher = FakeEngine(lambda *asked: writes_requests(*asked) if next(said) % 2 else '{"requests": []}')
    bench = small_bench(task, tmp_path, teacher)
    rows = labelled(task)
    curated({"method": "expand", "rows": 24, "texts": 6, "rounds": 3}, rows, task, 1, tmp_path, bench)
    assert teacher.batches == [4, 2, 1]
    for prompt, sampling, grammar in teacher.asked:
        assert grammar is not None
        assert json.loads(grammar.text)["properties"]["requests"]["items"] == {"type": "string"}
        assert sampling.temperature > 0
        assert task.description in prompt.messages[0]["content"]
        assert prompt.shared == 1
    seeds = {sampling.seed for _, sampling, _ in teacher.asked}
    assert len(seeds) == 3, "no round repeats the one before"


def written(*texts: str) -> FakeEngine:
    return FakeEngine(lambda *_: json.dumps({"requests": list(texts)}, ensure_ascii=False))


def answering(answer: Answer) -> Any:
    return lambda requests: [answer for _ in requests]


def test_expand_takes_in_nothing_that_is_there_or_is_asked_later_even_nearly(tmp_path: Path) -> None:
    long = "would you be so kind as to switch the lamp in my old grandmother's bedroom on for the night"
    asked = {"valid": [example(long, [], "v")], "test": [example("Kill the attic lamp", [], "t")]}
    task = small_task([tool for tool in small_task().tools if tool.name == "TurnOn"], **asked)
    rows = [row for row in labelled(task) if row.answer and row.answer.calls and row.answer.calls[0].tool == "TurnOn"]
    known = rows[0].request.text
    texts = [
        long.replace("kind", "kindly"),
        "kill the attic lamp!",
        known.upper(),
        "Bedroom bright please",
        "bedroom bright, please",
        "make my bedroom shine for once",
    ]
    bench = small_bench(
        task, tmp_path, written(*texts), answer=answering(Answer((Call("TurnOn", {"area": "Bedroom"}),)))
    )
    made = curated({"method": "expand", "rows": 6}, rows, task, 1, tmp_path, bench)[len(rows) :]
    assert [row.request.text for row in made] == ["Bedroom bright please", "make my bedroom shine for once"]


def test_expand_keeps_only_labels_that_are_verified_and_as_it_was_asked_for(tmp_path: Path) -> None:
    task = small_task([tool for tool in small_task().tools if tool.name == "TurnOn"], valid=[], test=[], unlabelled=[])
    rows = [row for row in labelled(task) if row.answer and row.answer.calls and row.answer.calls[0].tool == "TurnOn"]
    good = Call("TurnOn", {"area": "Hall"})
    for answer, count in (
        (Answer((good,)), 1),
        (Answer((Call("TurnOn", {"area": "Moon"}),)), 0),
        (Answer(), 0),
        (Answer(readable=False), 0),
        (Answer((good, Call("TurnOff", {}))), 0),
    ):
        bench = small_bench(task, tmp_path, written("shine in the hall"), answer=answering(answer))
        made = curated({"method": "expand", "rows": 1}, rows, task, 1, tmp_path, bench)
        assert len(made) - len(rows) == count, answer


def test_values_to_mention_are_ones_that_the_schema_allows() -> None:
    task = small_task()
    wishes = wishes_of(task, labelled(task), 12, 5, 2, random.Random(1))
    assert {wish.function for wish in wishes} == {"TurnOn", "TurnOff", "Dim", ""}
    assert all(len(wish.seeds) <= 2 for wish in wishes)
    for wish in wishes:
        words = writing_prompt(task, wish, 5).messages[1]["content"]
        for line in wish.values:
            pairs = dict(pair.split(" ", 1) for pair in line.split(", "))
            assert pairs["area"] in task.tool_map[wish.function].parameters["properties"]["area"]["enum"]
            assert 0 <= int(pairs.get("level", 0)) <= 100
            assert line in words
        assert all(row.request.text in words for row in wish.seeds)
        assert ("none of the functions" in words) == (not wish.function)


@pytest.mark.parametrize(
    ("text", "requests"),
    [
        ('{"requests": ["a b", " c\\n d "]}', ["a b", "c d"]),
        ('["a", "", 3, "💡 打开"]', ["a", "💡 打开"]),
        ('{"requests": ["a", "b \\"c\\"", "cut of', ["a", 'b "c"']),
        ('{"requests": "a"}', []),
        ("{}", []),
        ("no JSON at all", []),
        ("", []),
        ('{"requests": ["ok", "half \\ud83d"]}', ["ok"]),
        (json.dumps(["x" * 5000, "y"]), ["y"]),
    ],
)
def test_the_teachers_list_is_read_whole_or_in_part(text: str, requests: list[str]) -> None:
    assert read_requests(text) == requests


HALL = Call("TurnOn", {"area": "Hall"})


def judged(answer: Answer, verdict: Verdict, text: str = "light in the hall", id: str = "a") -> Example:
    return Example(Request.from_text(text, id), answer, verdict, {"source": "pool"})


FAILED = judged(
    Answer((Call("TurnOn", {"area": "Hal"}),), raw="TurnOn area Hal", cost=Cost(0.5), by="pipeline"),
    Verdict("fail", 0.0, "TurnOn: area: 'Hal' is not allowed; did you mean 'Hall'?"),
)


def no_attic(text: str, calls: list[dict[str, Any]]) -> tuple[str, str]:
    """A task's own verifier."""
    if not calls:
        return "abstain", ""
    attic = any(call["arguments"].get("area") == "Attic" for call in calls)
    return ("fail", "the request names no attic") if attic else ("pass", "")


def refined(rows: Sequence[Example], folder: Path, *texts: str, **settings: Any) -> tuple[list[Example], FakeEngine]:
    said = iter(texts)
    teacher = FakeEngine(lambda *_: next(said))
    task = replace(small_task(), hook=no_attic)
    kept = curated({"method": "refine", **settings}, rows, task, 1, folder, small_bench(task, folder, teacher))
    return kept, teacher


def test_refine_hands_the_verifiers_reason_back_and_keeps_what_passes(tmp_path: Path) -> None:
    fine = judged(Answer((HALL,)), Verdict("pass"), id="fine")
    (first, second), teacher = refined([fine, FAILED], tmp_path, "TurnOn area Hall")
    assert first is fine
    assert second.answer is not None
    assert second.answer.calls == (HALL,)
    assert second.verdict == Verdict("pass")
    assert second.provenance["origin"] == "a"
    assert second.provenance["source"] == "pool"
    assert second.provenance["refined"]["before"] == [{"name": "TurnOn", "arguments": {"area": "Hal"}}]
    assert second.answer.cost.tokens_in == 10
    assert second.answer.cost.dollars == 0.5
    (prompt, sampling, _), *more = teacher.asked
    assert not more
    assert sampling.temperature == 0
    assert prompt.messages[-2] == {"role": "assistant", "content": "TurnOn area Hal"}
    assert "did you mean 'Hall'?" in prompt.messages[-1]["content"]
    assert len(prompt.messages) == 2 + 8 * 2 + 2, "eight labelled rows stand before the request"


def test_refine_asks_again_with_the_newest_complaint_and_gives_up_at_last(tmp_path: Path) -> None:
    (row,), teacher = refined([FAILED], tmp_path, "TurnOn area Attic", "TurnOn area Hall")
    assert row.answer is not None
    assert row.answer.calls == (HALL,)
    (_, first, _), (prompt, second, _) = teacher.asked
    assert (first.temperature, second.temperature > 0) == (0, True)
    assert prompt.messages[-2]["content"] == "TurnOn area Attic"
    assert "the request names no attic" in prompt.messages[-1]["content"]
    (row,), _ = refined([FAILED], tmp_path, "TurnOn area Attic", "TurnOff area Attic")
    assert row is FAILED


def test_refine_takes_no_call_for_an_answer(tmp_path: Path) -> None:
    (row,), teacher = refined([FAILED], tmp_path, "~", "TurnOn area Hall")
    assert row.answer is not None
    assert (row.answer.calls, row.verdict) == ((), Verdict("abstain"))
    assert len(teacher.asked) == 1, "it is not pushed into a call"


def test_refine_mends_doubts_only_where_it_is_told_to_and_leaves_gold_alone(tmp_path: Path) -> None:
    doubted = judged(Answer((Call("TurnOff", {"area": "Hall"}),), confidence=0.34), Verdict("pass"))
    assert refined([doubted], tmp_path)[0] == [doubted]
    (row,), _ = refined([doubted], tmp_path, "TurnOn area Hall", least_confidence=0.5)
    assert row.answer is not None
    assert (row.answer.calls, row.answer.confidence) == ((HALL,), None)
    (row,), _ = refined([doubted], tmp_path, "TurnOff area Hall", least_confidence=0.5)
    assert row is doubted, "it says the same: the doubt stays"
    gold = replace(FAILED, provenance={"source": "labelled"})
    assert refined([gold], tmp_path)[0] == [gold]
    unread = judged(Answer(raw="hm", readable=False), Verdict("fail", 0.0, "unreadable answer"))
    (row,), _ = refined([unread], tmp_path, "TurnOn area Hall")
    assert row.answer is not None
    assert (row.answer.calls, row.answer.readable) == ((HALL,), True)


def test_the_fakes_speak_as_the_teacher_would() -> None:
    """Otherwise the tests above would prove nothing."""
    task = small_task()
    (wish,) = wishes_of(task, examples("labelled"), 1, 3, 2, random.Random(5))
    text = writes_requests(writing_prompt(task, wish, 3), Sampling(), Grammar("regex", ""))
    requests = read_requests(text)
    assert len(requests) == 3
    answers = labels([Request.from_text(text) for text in requests])
    assert {answer.calls[0].tool for answer in answers} == {wish.function}
    assert isinstance(writing_prompt(task, wish, 3), Prompt)
