"""How functions are chosen by probability, how votes end early, and what the plain prompt says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.methods import build
from supertiny.core.records import Answer, Call, Completion, Example, Grammar, Price, Prompt, Request, Sampling
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.label_shares import _label_text, _own_shares
from supertiny.prototype.prompting import function_list
from supertiny.prototype.teacher import Pipeline
from tests.fake_engine import FakeEngine
from tests.fake_scorer import FakeScorer
from tests.step_bench import COMPACT, TASK, answered, bench, engine_of, traces

TOOLS = [tool.name for tool in TASK.tools]


class Table(FakeScorer):
    """Log-probabilities from a table of text and label; what is not in it is -9."""

    def __init__(self, table: dict[str, dict[str, float]]) -> None:
        super().__init__(price=Price(dollars_per_million_in=100_000))
        self.table = table

    def logprob(self, prompt: Prompt, text: str) -> float:
        return self.table[str(prompt.messages[-1]["content"])].get(text, -9.0)


def routed(table: dict[str, dict[str, float]], **settings: Any) -> tuple[list[Trace], Table]:
    engine = Table(table)
    found = build("steps", {"method": "route", "by": "logprob", **settings}).run(traces(*table), bench(engine=engine))
    return found, engine


def test_all_labels_of_all_requests_are_scored_in_one_batch() -> None:
    found, engine = routed({"a": {"TurnOn": -1.0}, "b": {"~": -1.0}, "c": {"Dim": -1.0}})
    assert engine.score_batches == [3 * (len(TOOLS) + 1)]
    assert [(trace.tool, trace.calls) for trace in found] == [("TurnOn", None), ("", ()), ("Dim", None)]
    assert [trace.asked for trace in found] == [len(TOOLS) + 1] * 3
    assert [trace.raw for trace in found] == ["TurnOn", "~", "Dim"]


def test_calibration_takes_away_what_the_model_prefers_whatever_is_asked() -> None:
    """The model likes TurnOn always; where it likes it less than usual, another function is meant."""
    table = {str(n): {"TurnOn": -0.5, "TurnOff": -2.5} for n in range(9)} | {"x": {"TurnOn": -0.9, "TurnOff": -1.0}}
    plain, _ = routed(table, calibrate=False)
    lifted, _ = routed(table)
    assert [trace.tool for trace in plain] == ["TurnOn"] * 10
    assert lifted[-1].tool == "TurnOff"
    few, _ = routed(dict(list(table.items())[-3:]))
    assert few[-1].tool == "TurnOn", "a mean over three requests says nothing"


def test_requests_are_calibrated_by_those_with_the_same_functions_alone() -> None:
    own = tuple(replace(tool, description="another") for tool in TASK.tools[:2])
    likes = {"TurnOn": -0.5, "TurnOff": -2.5}
    table = {str(n): likes for n in range(9)} | {"x": {"TurnOn": -0.9, "TurnOff": -1.0}}
    given = [*traces(*table), Trace(replace(traces("x")[0].request, tools=own))]
    found = build("steps", {"method": "route", "by": "logprob"}).run(given, bench(engine=Table(table)))
    assert [trace.tool for trace in found[-2:]] == ["TurnOff", "TurnOn"]


def test_a_pipeline_that_scores_takes_all_requests_together() -> None:
    """So that an engine that loads its model anew between scoring and writing does so once."""
    table = {str(n): {"TurnOn": -0.5} for n in range(9)}
    for by, batches in (("logprob", [9 * (len(TOOLS) + 1)]), ("grammar", [])):
        engine = Table(table)
        steps = [build("steps", {"method": "route", "by": by, "calibrate": False}), build("steps", "fill")]
        Pipeline(steps, bench(engine=engine), chunk=4).answer([trace.request for trace in traces(*table)])
        assert engine.score_batches == batches
        assert max(engine.batches) == (9 if by == "logprob" else 4)


def test_several_candidates_are_all_that_fill_sees() -> None:
    at = bench(engine=Table({"dim the hall": {"Dim": -1.0, "TurnOff": -2.0}}))
    shown = build("steps", "retrieve").run(traces("dim the hall"), at)
    found = build("steps", {"method": "route", "by": "logprob", "keep": 2}).run(shown, at)
    assert found[0].candidates == ("Dim", "TurnOff")
    assert (found[0].tool, found[0].calls) == (None, None)
    prompt = at.prompt(found[0])
    assert function_list([TASK.tools[1], TASK.tools[2]]) in str(prompt.messages[0]["content"])
    assert not any("TurnOn" in str(message["content"]) for message in prompt.messages)
    engine = FakeEngine(
        lambda prompt, sampling, grammar: "TurnOn area Hall" if grammar is None else "Dim area Hall; level 1"
    )
    filling = replace(at, engine=engine)
    (filled,) = build("steps", "fill").run(found, filling)
    assert engine.asked[1][2] == COMPACT.grammar([TASK.tools[1], TASK.tools[2]], words=False)
    assert filled.calls == (Call("Dim", {"area": "Hall", "level": 1}),)
    # A second try sees all functions: perhaps the right one was left out.
    wrong = replace(filled, calls=(Call("Dim", {"area": "Cellar", "level": 1}),))
    build("steps", "check").run([wrong], filling)
    assert "TurnOn" in str(engine.asked[-1][0].messages[0]["content"])


def test_a_routed_request_keeps_further_calls_beside_the_chosen_function() -> None:
    text = "TurnOn area Kitchen\nTurnOff area Hall"
    at = bench(lambda prompt, sampling, grammar: "TurnOn" if grammar and grammar.kind == "regex" else text)
    found = build("steps", "fill").run(build("steps", "route").run(traces("both"), at), at)
    assert found[0].calls == (Call("TurnOn", {"area": "Kitchen"}), Call("TurnOff", {"area": "Hall"}))
    assert len(engine_of(at).asked) == 2, "it stands as it is"


def test_scores_keep_to_the_budget_and_to_engines_that_can(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(tokens=10))
    step = build("steps", {"method": "route", "by": "logprob"})
    engine = Table({"a": {}})
    with pytest.raises(BudgetReached):
        step.run(traces("a"), bench(engine=ledger.wrap(engine, "x")))
    assert engine.scored == 0
    assert step.needs == ("token_scores",)
    assert build("steps", "route").needs == ()
    with pytest.raises(UserError, match="logprob"):
        build("steps", {"method": "route", "keep": 2})


@pytest.mark.parametrize(
    ("form", "name", "text"),
    [
        ("compact", "TurnOn", "TurnOn"),
        ("compact", "", "~"),
        ("chat_json", "TurnOn", '[{"name": "TurnOn"'),
        ("chat_json", "", "[]"),
        ("chat_json", "name", '[{"name": "name"'),
        ("chat_json", "a", '[{"name": "a"'),
        ("compact", "all on", '"all on"'),
    ],
)
def test_a_label_is_what_an_answer_with_it_begins_with(form: str, name: str, text: str) -> None:
    assert _label_text(build("formats", form), name) == text


def test_a_name_that_another_begins_with_is_no_likelier_for_that() -> None:
    """A model that means TurnOnAll is as sure of the letters TurnOn."""
    given = traces("everything on", "turn on the kitchen")
    block = {"method": "route", "by": "logprob", "calibrate": False}
    assert [trace.tool for trace in build("steps", block).run(given, bench())] == ["TurnOnAll", "TurnOn"]
    kept = build("steps", {**block, "keep": 2}).run(given, bench())
    assert [trace.candidates[0] for trace in kept] == ["TurnOnAll", "TurnOn"]
    texts = ["~", "Set", "SetVolume", "SetVolumeRelative", "SetUp"]
    masses = [0.1, 0.9, 0.8, 0.3, 0.05]
    assert _own_shares(texts, np.log(masses).tolist()) == pytest.approx([0.1, 0.05, 0.5, 0.3, 0.05])
    assert _own_shares(["A", "AB"], [-2.0, -1.0]).tolist() == [0.0, 1.0], "tokens need not agree with letters"


@pytest.mark.parametrize("by", ["grammar", "logprob"])
def test_a_route_chooses_among_what_an_earlier_step_left(by: str) -> None:
    left = ("TurnOff", "Dim")
    given = [replace(trace, candidates=left) for trace in traces(*map(str, range(9)))]
    table = Table({str(n): {"TurnOn": -0.1, "TurnOff": -3.0, "Dim": -1.0} for n in range(10)})
    at = bench(engine=table) if by == "logprob" else bench(lambda *_: "Dim")
    several = [*given, *traces("9")]
    found = build("steps", {"method": "route", "by": by, "calibrate": False}).run(several, at)
    assert [(trace.tool, trace.candidates) for trace in found[:9]] == [("Dim", ())] * 9
    if by == "logprob":
        assert table.score_batches == [9 * 3 + len(TOOLS) + 1]
        assert found[9].tool == "TurnOn", "of which nothing was left out"
    else:
        assert engine_of(at).asked[0][2] == Grammar("regex", f"(TurnOff|Dim|{re.escape('~')})")
        (unknown,) = build("steps", "route").run(given[:1], bench(lambda *_: "Dimm"))
        assert (unknown.tool, unknown.candidates) == (None, left), "a word that is no function chooses none"


def test_text_after_the_end_of_an_answer_is_no_part_of_it() -> None:
    ended = "TurnOn area Hall" + COMPACT.stop
    for name in ("fill", "plain"):
        (found,) = build("steps", name).run(traces("x"), bench(lambda *_: ended))
        assert (found.calls, found.asked) == ((Call("TurnOn", {"area": "Hall"}),), 1)


def drawing(*samples: str) -> tuple[Bench, FakeEngine]:
    """A bench whose engine writes one sample after the other, the same for all requests of a round."""
    at = bench(lambda prompt, sampling, grammar: samples[sampling.seed - 5001])
    return at, engine_of(at)


ON, OFF, DIM = "TurnOn area Hall", "TurnOff area Hall", "Dim area Hall; level 5"


@pytest.mark.parametrize(
    ("samples", "adaptive", "drawn", "confidence"),
    [
        ((ON, ON, ON, ON, ON), False, 5, 1.0),
        ((ON, ON, ON, ON, ON), True, 2, 1.0),  # 3 for, 3 left: a tie goes to the answer at hand
        ((ON, OFF, ON, ON, ON), True, 3, 3 / 4),  # 3 to 1, 2 left
        ((OFF, OFF, ON, OFF, ON), True, 5, 3 / 6),  # open to the end
        ((ON,) * 9, True, 4, 1.0),
    ],
)
def test_a_vote_ends_when_it_is_decided(samples: Sequence[str], adaptive: bool, drawn: int, confidence: float) -> None:
    at, engine = drawing(*samples)
    block = {"method": "vote", "samples": len(samples), "adaptive": adaptive}
    (found,) = build("steps", block).run([answered("x", Call("TurnOn", {"area": "Hall"}))], at)
    assert len(engine.asked) == drawn == found.asked
    assert found.confidence == pytest.approx(confidence)
    assert found.calls == (Call("TurnOn", {"area": "Hall"}),)


def test_ending_early_never_changes_the_winner() -> None:
    """All 27 ways that three samples can fall, with an answer at hand, a failing one or none."""
    first = [*(answered("x", Call("TurnOn", {"area": area})) for area in ("Hall", "Moon")), traces("x")[0]]
    for number in range(3**3):
        samples = [(ON, OFF, DIM)[number // 3**place % 3] for place in range(3)]
        for trace in first:
            winners = []
            for adaptive in (False, True):
                at, _ = drawing(*samples)
                (found,) = build("steps", {"method": "vote", "samples": 3, "adaptive": adaptive}).run([trace], at)
                winners.append(found.calls)
            assert winners[0] == winners[1], samples


def test_a_rescue_draws_only_where_the_answer_fails() -> None:
    at, engine = drawing(ON, ON)
    good = answered("good", Call("TurnOff", {"area": "Hall"}))
    none = answered("none")
    bad = answered("bad", Call("TurnOff", {"area": "Cellar"}))
    unread = traces("unread")[0]
    found = build("steps", {"method": "vote", "only_failed": True}).run([good, none, bad, unread], at)
    assert found[:2] == [good, none]
    assert {str(prompt.messages[-1]["content"]) for prompt, *_ in engine.asked} == {"bad", "unread"}
    assert [trace.calls for trace in found[2:]] == [(Call("TurnOn", {"area": "Hall"}),)] * 2


def test_the_plain_prompt_says_what_it_always_said() -> None:
    engine = FakeEngine(lambda prompt, sampling, grammar: '[{"name": "TurnOn", "arguments": {"area": "Hall"}}]')
    form = build("formats", "chat_json")
    told: list[float] = []
    at = bench(engine=engine, form=form, advance=told.append)
    (answer,) = Pipeline([build("steps", "plain")], at, 4, "plain_prompt").answer([traces("hall on")[0].request])
    prompt, sampling, grammar = engine.asked[0]
    words = (
        f"{TASK.description}\n\n{function_list(TASK.tools)}\n\n"
        'Answer with a JSON list of calls, [{"name": ..., "arguments": {...}}], and nothing else. '
        "Answer [] when no function serves the request."
    )
    assert prompt == Prompt(({"role": "system", "content": words}, {"role": "user", "content": "hall on"}), shared=1)
    assert (sampling, grammar) == (Sampling(128), form.grammar(TASK.tools, words=False))
    assert answer.calls == (Call("TurnOn", {"area": "Hall"}),)
    assert (answer.by, answer.raw[:9], sum(told)) == ("plain_prompt", '[{"name":', 1)


def test_a_plain_answer_that_was_cut_off_is_no_call_only_where_it_is_words() -> None:
    def cut(text: str) -> Trace:
        engine = FakeEngine()
        engine._write = lambda *_: Completion(text, 1, 1, finish="length")  # type: ignore[method-assign]
        at = bench(engine=engine, form=build("formats", "chat_json"))
        (found,) = build("steps", "plain").run(traces("x"), at)
        return found

    assert cut('[{"name": "TurnOn", "arguments": {"area": "Hall"}}]').calls is None
    assert cut("I cannot do").calls == ()


def test_rules_of_the_plain_step_fit_its_format() -> None:
    seen: list[str] = []

    def write(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
        seen.append(str(prompt.messages[0]["content"]))
        return "~"

    build("steps", "plain").run(traces("x"), bench(write))
    assert COMPACT.rules in seen[0]
    assert "JSON" not in seen[0]


def test_words_are_an_answer_only_where_a_labelled_row_answers_in_words() -> None:
    polite = Example(Request.from_text("thank you"), Answer((), "You are welcome."))
    for labelled, tries in ((TASK.labelled, 2), ((*TASK.labelled, polite), 1)):
        engine = FakeEngine(lambda prompt, sampling, grammar: "~ I would." if grammar is None else "TurnOn area Hall")
        at = bench(engine=engine, task=replace(TASK, labelled=labelled))
        (found,) = build("steps", "fill").run(traces("hall on"), at)
        assert len(engine.asked) == tries
        assert (found.calls, found.text) == (
            ((Call("TurnOn", {"area": "Hall"}),), "") if tries == 2 else ((), " I would.")
        )
