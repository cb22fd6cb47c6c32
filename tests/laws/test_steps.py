"""What every step obeys: one trace each, in order, its cost added, whatever else is in the batch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.ledger import Ledger
from supertiny.core.methods import build, cards
from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Call, Cost, Grammar, Price, Prompt, Request, Sampling
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.teacher import Pipeline
from tests.fake_engine import FakeEngine
from tests.small_task import small_task

STEPS = sorted(cards("steps"))
TASK = small_task()
PRICE = Price(dollars_per_million_in=100_000)  # ten tokens in are a dollar
REQUESTS = ("turn on the kitchen", "turn off the bedroom", "tell me a joke", "nonsense", "включи 灯 💡", "dim the hall")
RIGHT = {
    "turn on the kitchen": "TurnOn area Kitchen",
    "turn off the bedroom": "TurnOff area Bedroom",
    "tell me a joke": "~",
    "включи 灯 💡": "TurnOn area Office",
    "dim the hall": "Dim area Hall; level 5",
}


def asked(prompt: Prompt) -> str:
    """The request itself: the user's message before any complaint."""
    said = [message["content"] for message in prompt.messages if message["role"] == "user"]
    return next(text for text in reversed(said) if not text.startswith("That is wrong"))


def author(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """Knows the right calls; writes function names where the grammar is one of names."""
    right = RIGHT.get(asked(prompt), "[broken")
    return right.split()[0] if grammar and grammar.kind == "regex" else right


def bench(written: Callable[..., str] = author, **more: Any) -> Bench:
    engine = FakeEngine(written, PRICE)
    settings = {"engine": engine, "task": TASK, "form": build("formats", "compact"), "seed": 5, **more}
    return Bench(nearest=NearestExamples(TASK.labelled), **settings)


def engine_of(bench: Bench) -> FakeEngine:
    assert isinstance(bench.engine, FakeEngine)
    return bench.engine


def traces(*texts: str) -> list[Trace]:
    return [Trace(Request.from_text(text, f"id of {text}")) for text in texts or REQUESTS]


def answered(text: str, *calls: Call, raw: str = "before") -> Trace:
    return replace(traces(text)[0], calls=calls, raw=raw)


@pytest.mark.parametrize("name", STEPS)
def test_one_trace_each_in_order(name: str) -> None:
    given = traces()
    found = build("steps", name).run(given, bench())
    assert [trace.request for trace in found] == [trace.request for trace in given]
    assert build("steps", name).run([], bench()) == []


@pytest.mark.parametrize("name", STEPS)
def test_the_cost_of_every_call_is_added_to_its_trace(name: str) -> None:
    paid = Cost(5.0, 7.0, 11, 13, 17)
    given = [replace(trace, cost=paid) for trace in traces()]
    at = bench()
    found = build("steps", name).run(given, at)
    total = sum(trace.cost.dollars - 5.0 for trace in found)
    assert total == pytest.approx(len(engine_of(at).asked))
    assert all(trace.cost.tokens_in >= 11 and trace.cost.seconds >= 7.0 for trace in found)
    for text in REQUESTS:
        calls = sum(asked(prompt) == text for prompt, *_ in engine_of(at).asked)
        (trace,) = [trace for trace in found if trace.request.text == text]
        assert trace.cost == paid + Cost(float(calls), 0.5 * calls, 10 * calls, 2 * calls, 0)


@pytest.mark.parametrize("name", STEPS)
def test_what_else_is_in_the_batch_does_not_matter(name: str) -> None:
    step, given = build("steps", name), traces()
    together = step.run(given, bench())
    assert list(reversed(step.run(given[::-1], bench()))) == together
    assert [trace for one in given for trace in step.run([one], bench())] == together


@pytest.mark.parametrize("name", STEPS)
def test_progress_is_told_of_every_call(name: str) -> None:
    told: list[float] = []
    at = bench(advance=told.append)
    build("steps", name).run(traces(), at)
    # A second try under the grammar is no step further.
    first_tries = [grammar for *_, grammar in engine_of(at).asked if grammar is None or grammar.kind == "regex"]
    assert sum(told) == len(first_tries)


@pytest.mark.parametrize("name", [name for name in STEPS if name != "retrieve"])
def test_a_text_that_cannot_be_read_leaves_no_calls(name: str) -> None:
    found = build("steps", name).run(traces(), bench(lambda *_: "[never readable"))
    assert all(trace.calls is None for trace in found)
    (tried,) = build("steps", "fill").run(traces("nonsense"), bench())
    assert (tried.calls, tried.raw, tried.text) == (None, "[broken", "")


def test_the_prompt_says_all_that_the_model_must_know() -> None:
    at = bench()
    build("steps", "fill").run(build("steps", "retrieve").run(traces("kitchen brightness 40"), at), at)
    (prompt, sampling, free), (again, _, grammar) = engine_of(at).asked
    assert prompt == again
    assert free is None, "the grammar is applied only where it is needed"
    system = prompt.messages[0]["content"]
    assert all(tool.name in system and tool.description in system for tool in TASK.tools)
    assert "Lights of a home." in system
    assert "Attic" in system
    assert prompt.shared == 1
    assert prompt.messages[-1] == {"role": "user", "content": "kitchen brightness 40"}
    assert sampling.temperature == 0
    assert grammar == at.form.grammar(TASK.tools)


def test_retrieve_shows_the_nearest_last_and_never_the_answers_of_other_splits() -> None:
    (found,) = build("steps", {"method": "retrieve", "examples": 3}).run(traces("turn off the bedroom light"), bench())
    assert len(found.examples) == 3
    assert found.examples[-1].request.text == "turn off the bedroom light"
    assert all(row in TASK.labelled for row in found.examples)
    messages = bench().prompt(found).messages
    assert messages[-3:-1] == (
        {"role": "user", "content": "turn off the bedroom light"},
        {"role": "assistant", "content": "TurnOff area Bedroom"},
    )


def test_route_chooses_among_the_functions_and_none() -> None:
    at = bench()
    found = {trace.request.text: trace for trace in build("steps", "route").run(traces(), at)}
    assert found["turn on the kitchen"].tool == "TurnOn"
    assert (found["tell me a joke"].tool, found["tell me a joke"].calls) == ("", ())
    assert (found["nonsense"].tool, found["nonsense"].calls) == (None, None), "a word that is no function chooses none"
    grammar = engine_of(at).asked[0][2]
    assert grammar is not None
    words = ("TurnOn", "TurnOff", "Dim", "~", "TurnO", "", "Turn")
    assert [bool(re.fullmatch(grammar.text, word)) for word in words] == [True] * 4 + [False] * 3


def test_fill_skips_what_was_routed_to_none_and_keeps_to_the_chosen_function() -> None:
    at = bench()
    given = traces("turn on the kitchen", "tell me a joke", "dim the hall")
    given = [replace(given[0], tool="TurnOn"), replace(given[1], tool="", calls=()), given[2]]
    found = build("steps", "fill").run(given, at)
    assert found[1] == given[1]
    assert found[0].calls == (Call("TurnOn", {"area": "Kitchen"}),)
    assert [asked(prompt) for prompt, *_ in engine_of(at).asked] == ["turn on the kitchen", "dim the hall"]
    stray = bench(lambda prompt, sampling, grammar: "TurnOn area Kitchen" if grammar else "TurnOff area Kitchen")
    (kept,) = build("steps", "fill").run(given[:1], stray)
    assert [g for *_, g in engine_of(stray).asked] == [None, stray.form.grammar(TASK.tools[:1])]
    assert kept.calls == (Call("TurnOn", {"area": "Kitchen"}),), "what leaves the chosen function is written again"
    assert kept.cost.dollars == 2.0, "both tries are paid"


def test_check_asks_only_where_the_verifier_fails_and_takes_only_what_passes() -> None:
    good = answered("turn on the kitchen", Call("TurnOn", {"area": "Kitchen"}))
    none = answered("tell me a joke")
    wrong = answered("turn off the bedroom", Call("TurnOff", {"area": "Cellar"}), raw="TurnOff area Cellar")
    stuck = answered("nonsense", Call("Dim", {"area": "Hall"}), raw="Dim area Hall")
    unread = replace(traces("dim the hall")[0], raw="Dim the")
    at = bench()
    found = build("steps", "check").run([good, wrong, none, stuck, unread], at)
    assert {asked(prompt) for prompt, *_ in engine_of(at).asked} == {"turn off the bedroom", "nonsense", "dim the hall"}
    assert [found[0], found[2]] == [good, none]
    assert found[1].calls == (Call("TurnOff", {"area": "Bedroom"}),)
    assert found[4].calls == (Call("Dim", {"area": "Hall", "level": 5}),)
    # The second answer of `stuck` cannot be read: the first one stays, and its cost is counted.
    assert replace(found[3], cost=Cost()) == stuck
    assert found[3].cost.dollars == 2.0
    (prompt,) = [prompt for prompt, *_ in engine_of(at).asked if asked(prompt) == "turn off the bedroom"]
    assert prompt.messages[-2] == {"role": "assistant", "content": "TurnOff area Cellar"}
    assert "Cellar" in prompt.messages[-1]["content"]


def test_check_refuses_a_second_answer_that_fails_as_well() -> None:
    wrong = answered("turn off the bedroom", Call("TurnOff", {"area": "Cellar"}))
    (found,) = build("steps", "check").run([wrong], bench(lambda *_: "TurnOff area Moon"))
    assert found.calls == wrong.calls


def voted(first: Trace, *samples: str) -> tuple[Trace, FakeEngine]:
    at = bench(lambda prompt, sampling, grammar: samples[sampling.seed - 5001])
    (found,) = build("steps", {"method": "vote", "samples": len(samples)}).run([first], at)
    return found, engine_of(at)


def test_vote_takes_the_majority_and_its_share_is_the_confidence() -> None:
    first = answered("x", Call("TurnOn", {"area": "Hall"}))
    found, engine = voted(first, "TurnOff area Hall", "Dim area Hall; level 5", "Dim area Hall; level 5")
    assert found.calls == (Call("Dim", {"area": "Hall", "level": 5}),)
    assert found.confidence == pytest.approx(2 / 4)
    assert found.raw == "Dim area Hall; level 5"
    assert found.cost.dollars == 3.0
    assert len({sampling.seed for _, sampling, _ in engine.asked}) == 3
    assert all(sampling.temperature > 0 for _, sampling, _ in engine.asked)


def test_vote_gives_ties_to_the_answer_at_hand_and_counts_equal_meanings_together() -> None:
    first = answered("x", Call("Dim", {"area": "Hall", "level": 5}))
    assert voted(first, "TurnOff area Hall", "TurnOn area Hall")[0].calls == first.calls
    found, _ = voted(first, "TurnOff area Hall", "TurnOff area Hall", "Dim area Hall; level 5.0")
    assert found.calls == first.calls
    assert found.confidence == pytest.approx(2 / 4)


def test_vote_hears_no_answer_that_fails_or_cannot_be_read() -> None:
    first = answered("x", Call("TurnOn", {"area": "Cellar"}))
    found, _ = voted(first, "TurnOn area Cellar", "[", "TurnOff area Hall")
    assert found.calls == (Call("TurnOff", {"area": "Hall"}),)
    assert found.confidence == pytest.approx(1 / 4)
    found, _ = voted(first, "TurnOn area Cellar", "[")
    assert (found.calls, found.confidence) == (first.calls, 0.0)


def test_the_whole_pipeline_through_the_ledger(tmp_path: Path) -> None:
    engine = FakeEngine(author, PRICE)
    for expected in (True, False):
        ledger = Ledger(tmp_path / "ledger.sqlite")
        at = replace(bench(), engine=ledger.wrap(engine, "test"))
        steps = [build("steps", name) for name in ("retrieve", "route", "fill", "check", "vote")]
        before = len(engine.asked)
        answers = Pipeline(steps, at, chunk=4).answer([trace.request for trace in traces()])
        assert (len(engine.asked) > before) is expected, "the second run asks the model nothing"
        assert [at.form.write(a) for a in answers] == [RIGHT.get(text, "~") for text in REQUESTS]
        assert [a.by for a in answers] == ["pipeline"] * len(REQUESTS)
        assert answers[0].confidence == 1.0
        assert sum(a.cost.tokens_in for a in answers) >= 10 * 2 * len(REQUESTS)
        ledger.close()
