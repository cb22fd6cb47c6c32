"""What every step obeys: one trace each, in order, its cost added, whatever else is in the batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.ledger import Ledger
from supertiny.core.methods import build, cards
from supertiny.core.protocols import Engine
from supertiny.core.records import Answer, Call, Cost, Request
from supertiny.prototype.bench import Shelf, StepCost, Trace
from supertiny.prototype.teacher import Pipeline
from tests.fake_engine import FakeEngine
from tests.fake_scorer import FakeScorer
from tests.step_bench import (
    BOTH,
    COMPACT,
    PLAY,
    PRICE,
    REQUESTS,
    RIGHT,
    TASK,
    answered,
    asked,
    author,
    bench,
    engine_of,
    traces,
    tried,
)

STEPS = sorted(cards("steps"))
# What a step must be given, and settings under which it works otherwise: the laws hold for each.
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "cascade": {"engine": {"method": "replay", "source": "cheap"}},
    "judge": {"guidelines": "An answer is right when it does what is asked."},
    "stack": {"rows": 6},
}
OTHERWISE: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "cascade": [{"steps": ["retrieve", "fill", "check"]}],
    "classify": [{"risk": 0.3}],
    "execute": [{"rounds": 2, "at_once": 1}],
    "judge": [{"hand_back": False}, {"least_kappa": 1.0, "engine": {"method": "replay", "source": "judge"}}],
    "retrieve": [{"diversity": 0.5}],
    "route": [{"by": "logprob", "calibrate": False}, {"by": "logprob", "calibrate": False, "keep": 2}],
    "stack": [{"steps": []}, {"steps": ["classify", "retrieve", "mark"]}],
    "vote": [{"adaptive": True, "samples": 4}, {"only_failed": True}],
}
BLOCKS = [{"method": name, **NEEDED.get(name, {}), **more} for name in STEPS for more in ({}, *OTHERWISE.get(name, ()))]


def timeless(found: Sequence[Trace]) -> list[Trace]:
    """Without the seconds, which are measured where texts are scored."""
    return [replace(trace, cost=replace(trace.cost, seconds=0.0)) for trace in found]


def named(block: Mapping[str, Any]) -> str:
    return " ".join(str(value) for key, value in block.items() if key not in ("engine", "guidelines"))


every_step = pytest.mark.parametrize("block", BLOCKS, ids=named)


@every_step
def test_one_trace_each_in_order(block: Mapping[str, Any]) -> None:
    given = tried()
    found = build("steps", block).run(given, bench())
    assert [trace.request for trace in found] == [trace.request for trace in given]
    assert given == tried(), "what it is given stays as it is"
    assert build("steps", block).run([], bench()) == []
    assert build("steps", block).calls_per_request >= 0


@every_step
def test_the_cost_of_every_call_is_added_to_its_trace_or_told_as_paid_once(block: Mapping[str, Any]) -> None:
    paid = Cost(5.0, 7.0, 11, 13, 17)
    given = [replace(trace, cost=paid) for trace in tried()]
    opened: list[FakeEngine] = []

    def open_engine(known: Mapping[str, Any]) -> Engine:
        opened.append(FakeEngine(author, PRICE, known["source"]))
        return opened[-1]

    at = bench(shelf=Shelf(open_engine))
    found = build("steps", block).run(given, at)
    engine = engine_of(at)
    assert isinstance(engine, FakeScorer)
    calls = len(engine.asked) + sum(len(own.asked) for own in opened)
    once = sum(at.shelf.fixed.values(), StepCost())
    assert sum(trace.asked for trace in found) + once.calls == calls + engine.scored
    dollars = sum(trace.cost.dollars - 5.0 for trace in found) + once.cost.dollars
    assert dollars == pytest.approx(calls + engine.scored / 10)
    for trace in found if not engine.scored else ():
        count = trace.asked
        assert trace.cost == paid + Cost(float(count), 0.5 * count, 10 * count, 2 * count, 0)


@every_step
def test_what_else_is_in_the_batch_does_not_matter(block: Mapping[str, Any]) -> None:
    step, given = build("steps", block), tried()
    together = timeless(step.run(given, bench()))
    assert timeless(step.run(given, bench())) == together, "same seed, same traces"
    assert list(reversed(timeless(step.run(given[::-1], bench())))) == together
    assert timeless([trace for one in given for trace in step.run([one], bench())]) == together


@every_step
def test_a_second_run_is_read_from_the_ledger(block: Mapping[str, Any], tmp_path: Path) -> None:
    engines: dict[str, FakeEngine] = {"": FakeScorer(author, PRICE, lambda prompt: RIGHT.get(asked(prompt), "~"))}
    found = []
    for _ in range(2):
        ledger = Ledger(tmp_path / "ledger.sqlite")
        shelf = Shelf(lambda known: engines.setdefault(known["source"], FakeEngine(author, PRICE, known["source"])))
        at = bench(engine=ledger.wrap(engines[""], "x"), wrap=lambda own, to=ledger: to.wrap(own, "x"), shelf=shelf)
        before = sum(len(engine.asked) for engine in engines.values()) + getattr(engines[""], "scored", 0)
        found.append(build("steps", block).run(tried(), at))
        after = sum(len(engine.asked) for engine in engines.values()) + getattr(engines[""], "scored", 0)
        spent = sum(trace.asked for trace in found[-1]) + sum(cost.calls for cost in shelf.fixed.values())
        assert (after > before) is (len(found) == 1 and spent > 0)
        assert sum(bill.calls for bill in ledger.bills()) <= spent
        ledger.close()
    assert found[1] == found[0]


@every_step
def test_several_calls_no_call_and_tools_of_a_request_stay(block: Mapping[str, Any]) -> None:
    own = Request("own", ({"role": "user", "content": "play jazz"},), (PLAY,))
    given = [*traces("tell me a joke", BOTH, "dim the hall to 5", "everything on"), Trace(own)]
    at = bench()
    found = build("steps", block).run(build("steps", "fill").run(given, at), at)
    if any(trace.calls is None for trace in found):  # a step that prepares an answer
        found = build("steps", "fill").run(found, at)
    assert [at.form.write(Answer(trace.calls or ())) for trace in found] == [RIGHT[t.request.text] for t in given]
    assert all(trace.calls is not None for trace in found)


class Closed(tuple[Any, ...]):
    """A split that nobody may look into."""

    def __iter__(self) -> Any:
        raise AssertionError("a step looked at answers that it must not know")

    __getitem__ = __len__ = __contains__ = __iter__  # type: ignore[assignment]


class ClosedGold(dict[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise AssertionError("a step looked at gold of the pool")

    get = __contains__ = __iter__ = items = values = __getitem__  # type: ignore[assignment]


@every_step
def test_gold_that_is_not_labelled_is_never_read(block: Mapping[str, Any]) -> None:
    task = replace(TASK, valid=Closed(), test=Closed(), pool_gold=ClosedGold())
    build("steps", block).run(tried(), bench(task=task))
    # A labelled row that is asked is not shown to itself.
    row = TASK.labelled[0]
    (found,) = build("steps", block).run([Trace(row.request)], bench())
    assert row not in found.examples


@every_step
def test_progress_is_told_of_every_call(block: Mapping[str, Any]) -> None:
    told: list[float] = []
    at = bench(advance=told.append)
    found = build("steps", block).run(traces(), at)
    calls = sum(trace.asked for trace in found) + sum(cost.calls for cost in at.shelf.fixed.values())
    # A second try under the grammar is no step further, nor is each function that is scored.
    assert bool(told) is bool(calls)
    assert sum(told) <= calls


@pytest.mark.parametrize("name", [name for name in STEPS if name not in ("retrieve", "stack")])  # `stack` knows more
def test_a_text_that_cannot_be_read_leaves_no_calls(name: str) -> None:
    block = {"method": name, **NEEDED.get(name, {})}
    found = build("steps", block).run(traces(), bench(lambda *_: "[never readable"))
    assert all(trace.calls is None for trace in found)
    (tried_,) = build("steps", "fill").run(traces("nonsense"), bench())
    assert (tried_.calls, tried_.raw, tried_.text) == (None, "[broken", "")


@every_step
def test_an_estimate_spends_nothing(block: Mapping[str, Any]) -> None:
    step = build("steps", block)
    at = bench(spends=False, task=replace(TASK, execute=lambda *_: 1 / 0))
    step.run(tried(), at)
    assert not at.shelf.fixed, "nothing is measured or learned"
    if step.calls_per_request == 0:
        assert not engine_of(at).asked


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
    assert grammar == at.form.grammar(TASK.tools, words=False)


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
    assert [g for *_, g in engine_of(stray).asked] == [None, stray.form.grammar(TASK.tools[:1], words=False)]
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


def test_all_steps_one_after_the_other_through_the_ledger(tmp_path: Path) -> None:
    engine = FakeScorer(author, PRICE, lambda prompt: RIGHT.get(asked(prompt), "~"))
    blocks = [
        {"method": "retrieve", "diversity": 0.3},
        {"method": "route", "by": "logprob", "keep": 2},
        {"method": "cascade", **NEEDED["cascade"]},
        "execute",
        "check",
        {"method": "vote", "adaptive": True, "only_failed": True},
        {"method": "judge", **NEEDED["judge"]},
    ]
    requests = [*(trace.request for trace in traces()), Request.from_text(BOTH, "both")]
    found, calls = [], []
    for _ in range(2):
        ledger = Ledger(tmp_path / "ledger.sqlite")
        cheap = FakeEngine(author, PRICE, "cheap")
        at = bench(
            engine=ledger.wrap(engine, "all"),
            shelf=Shelf(lambda block, own=cheap: own),
            wrap=lambda own, to=ledger: to.wrap(own, "all"),
        )
        before = len(engine.asked) + engine.scored
        made = Pipeline([build("steps", block) for block in blocks], at, chunk=3)
        found.append(made.answer(requests))
        calls.append(len(engine.asked) + engine.scored - before + len(cheap.asked))
        dollars = sum(cost.cost.dollars for cost in made.costs_by_step.values())
        once = sum(at.shelf.fixed.values(), StepCost()).cost.dollars
        assert sum(answer.cost.dollars for answer in found[-1]) + once == pytest.approx(dollars)
        ledger.close()
    assert found[0] == found[1]
    assert calls[0] > 0
    assert calls[1] == 0
    assert [COMPACT.write(answer) for answer in found[0]] == [RIGHT.get(r.text, "~") for r in requests]
