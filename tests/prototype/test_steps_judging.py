"""A judge is trusted after it was measured, and a cascade says who answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from supertiny.core.errors import UserError
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build
from supertiny.core.records import Call, Completion, Example, Grammar, Price, Prompt, Sampling
from supertiny.core.scoring import exact
from supertiny.core.task import load_task
from supertiny.prototype.agreement import _agreement_of, _wrong_calls, measure_agreement
from supertiny.prototype.bench import Bench, Shelf, Trace
from tests.fake_engine import FakeEngine
from tests.small_task import write_task
from tests.step_bench import RIGHT, TASK, answered, asked, author, bench, engine_of, traces

GUIDELINES = "An answer is right when it does what is asked."
JUDGE = {"method": "judge", "guidelines": GUIDELINES}
RIGHT_ANSWER = answered("dim the hall", Call("Dim", {"area": "Hall", "level": 5}), raw="Dim area Hall; level 5")
WRONG_ANSWER = answered("dim the hall", Call("Dim", {"area": "Hall", "level": 7}), raw="Dim area Hall; level 7")


def judging(verdict: Callable[[Prompt], str]) -> Callable[..., str]:
    """An author whose judgements are what `verdict` says."""

    def write(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
        if grammar and grammar.kind == "json_schema":
            return verdict(prompt)
        return author(prompt, sampling, grammar)

    return write


def judgement(verdict: str, reason: str = "Because.") -> str:
    return json.dumps({"reason": reason, "verdict": verdict})


def test_a_judge_that_agrees_with_gold_is_trusted_and_its_reason_is_handed_back() -> None:
    notes: list[str] = []
    at = bench(note=notes.append)
    found = build("steps", JUDGE).run([RIGHT_ANSWER, WRONG_ANSWER, *traces("nonsense")], at)
    assert found[0] == replace(RIGHT_ANSWER, cost=found[0].cost)
    assert found[1].calls == RIGHT_ANSWER.calls
    assert found[1].notes == ("judge: handed back: Because.",)
    assert [trace.asked for trace in found] == [1, 3, 0], "judged; judged, answered anew, judged again; unreadable"
    again = [prompt for prompt, *_ in engine_of(at).asked if "That is wrong: Because." in str(prompt.messages[-1])]
    assert len(again) == 1
    assert again[0].messages[-2] == {"role": "assistant", "content": "Dim area Hall; level 7"}
    (once,) = at.shelf.fixed.items()
    assert (once[0], once[1].calls) == ("judge: measuring its agreement", 48)
    (note,) = notes
    assert "kappa 1.00" in note
    assert note.endswith("; trusted")
    build("steps", JUDGE).run([RIGHT_ANSWER], at)
    assert at.shelf.fixed == dict([once]), "it is measured once"


def test_a_second_answer_counts_only_if_it_passes_the_judge() -> None:
    right = answered("dim the hall", *(RIGHT_ANSWER.calls or ()), raw="Dim area Hall; level 5")

    def verdict(prompt: Prompt) -> str:
        return judgement("fail", "Never.") if asked(prompt) == "dim the hall" else author(prompt, Sampling(), _SCHEMA)

    for hand_back, calls in ((True, 3), (False, 1)):
        at = bench(judging(verdict))
        (found,) = build("steps", {**JUDGE, "hand_back": hand_back}).run([right], at)
        assert (found.calls, found.confidence, found.asked) == (right.calls, 0.0, calls)
        assert found.notes == ("judge: fail: Never.",)


_SCHEMA = Grammar("json_schema", "{}")


@pytest.mark.parametrize(
    "nonsense",
    [
        "",
        "pass",
        "[]",
        '{"verdict": "pass"}',
        '{"verdict": 3, "reason": "x"}',
        '{"reason": "x", "verdict": "maybe"}',
        "null",
    ],
)
def test_nonsense_abstains_and_changes_nothing(nonsense: str) -> None:
    at = bench(judging(lambda prompt: nonsense))
    (found,) = build("steps", JUDGE).run([WRONG_ANSWER], at)
    assert replace(found, notes=()) == WRONG_ANSWER
    assert "not trusted" in found.notes[0], "a judge that only abstains has no agreement"
    trusting = build("steps", {**JUDGE, "least_kappa": -1})
    (found,) = trusting.run([WRONG_ANSWER], at)
    assert (found.calls, found.confidence, found.notes) == (WRONG_ANSWER.calls, None, ())


def test_a_judgement_that_is_cut_off_abstains() -> None:
    at = bench(judging(lambda prompt: judgement("fail")))
    engine = engine_of(at)
    known = engine._write
    engine._write = lambda *a: replace(known(*a), finish="length")  # type: ignore[method-assign]
    (found,) = build("steps", {**JUDGE, "least_kappa": -1}).run([WRONG_ANSWER], at)
    assert (found.calls, found.confidence) == (WRONG_ANSWER.calls, None)


@pytest.mark.parametrize("verdict", ["pass", "fail"])
def test_a_judge_that_always_says_the_same_is_not_trusted(verdict: str) -> None:
    at = bench(judging(lambda prompt: judgement(verdict)))
    found = build("steps", JUDGE).run([RIGHT_ANSWER, WRONG_ANSWER], at)
    assert [replace(trace, notes=()) for trace in found] == [RIGHT_ANSWER, WRONG_ANSWER]
    assert found[0].notes == ("judge: not trusted, kappa 0.00 is under 0.4",)
    assert {asked(prompt) for prompt, *_ in engine_of(at).asked} == {row.request.text for row in TASK.labelled}


def test_the_judge_may_have_an_engine_of_its_own_behind_the_same_ledger(tmp_path: Path) -> None:
    own = FakeEngine(author, Price(dollars_per_million_in=200_000), "own")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    at = bench(shelf=Shelf(lambda block: own), wrap=lambda engine: ledger.wrap(engine, "judge"))
    block = {**JUDGE, "engine": {"method": "replay", "source": "own"}}
    (found,) = build("steps", block).run([RIGHT_ANSWER], at)
    assert not engine_of(at).asked
    assert found.cost.dollars == 2.0, "at the price of the judge's engine"
    assert [(bill.purpose, bill.calls) for bill in ledger.bills()] == [("judge", 49)]


def test_guidelines_stand_in_the_tasks_folder_or_in_the_settings(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task")
    before = load_task(folder).hash
    with pytest.raises(UserError, match="no guidelines"):
        build("steps", "judge").run([RIGHT_ANSWER], bench(task=load_task(folder)))
    (folder / "guidelines.md").write_text("Lamps come first.\n", encoding="utf-8")
    task = load_task(folder)
    assert task.hash != before, "what a judge is told is part of the task"
    at = bench(task=task)
    build("steps", "judge").run([RIGHT_ANSWER], at)
    assert str(engine_of(at).asked[0][0].messages[0]["content"]).startswith("Lamps come first.\n\nFunctions:")


def test_results_of_the_calls_are_shown_to_the_judge() -> None:
    at = bench()
    (done,) = build("steps", "execute").run([RIGHT_ANSWER], at)
    build("steps", JUDGE).run([done], at)
    assert "-> Dim done" in str(engine_of(at).asked[-1][0].messages[-1]["content"])


def test_agreement_is_cohens_kappa_with_intervals() -> None:
    """20 of 25 right answers passed, 15 of 25 wrong ones failed: p_o 0.7, p_e 0.5, kappa 0.4."""
    outcomes = ["pass"] * 20 + ["fail"] * 5 + ["fail"] * 15 + ["pass"] * 10
    found = _agreement_of(outcomes, [True] * 25 + [False] * 25)
    assert found.kappa == pytest.approx(0.4)
    assert (found.accuracy.value, found.accuracy.count) == (0.7, 50)
    assert (found.false_pass.value, found.false_fail.value) == (0.4, 0.2)
    # Wilson's interval for 10 of 25.
    assert (found.false_pass.low, found.false_pass.high) == (
        pytest.approx(0.2340, abs=1e-3),
        pytest.approx(0.5926, abs=1e-3),
    )
    abstaining = _agreement_of(["pass", "abstain", "fail", "abstain"], [True, True, False, False])
    assert (abstaining.accuracy.value, abstaining.abstained.value) == (0.5, 0.5)
    assert abstaining.kappa == pytest.approx((0.5 - 0.25) / 0.75)
    assert _agreement_of([], []).kappa == 0.0


def test_agreement_is_measured_on_gold_and_on_as_many_wrong_answers() -> None:
    shown: list[Trace] = []

    def judge(given: Any) -> Any:
        shown.extend(given)
        return list(given), [type("V", (), {"outcome": "pass"})() for _ in given]

    found, _ = measure_agreement(judge, TASK.labelled, TASK, seed=3, most=10)
    gold = {row.request.id: row.answer.calls for row in TASK.labelled if row.answer}
    right = [exact(trace.calls or (), gold[trace.request.id], TASK.tool_map) for trace in shown]
    assert right == [True, False] * 10
    assert (found.false_pass.value, found.accuracy.value) == (1.0, 0.5)
    before = list(shown)
    shown.clear()
    measure_agreement(judge, TASK.labelled, TASK, seed=3, most=10)
    assert shown == before, "the same seed draws the same"
    kinds = {len(trace.calls or ()) for trace in shown[1::2]}
    assert kinds == {1}
    assert any((trace.calls or ())[0].tool == gold[trace.request.id][0].tool for trace in shown[1::2]), (
        "some are wrong in an argument alone"
    )
    assert any((trace.calls or ())[0].tool != gold[trace.request.id][0].tool for trace in shown[1::2])


def test_wrong_answers_of_rows_with_no_call_and_of_a_single_row() -> None:
    none = Example(traces("joke")[0].request, replace(TASK.labelled[0].answer, calls=()))  # type: ignore[type-var]
    wrong = _wrong_calls(none, [none, *TASK.labelled], TASK, Random(1))
    assert wrong
    assert _wrong_calls(none, [none], TASK, Random(1)) is None
    row = TASK.labelled[0]
    assert row.answer is not None
    alone = _wrong_calls(row, [row], TASK, Random(1))
    assert alone is not None
    assert not exact(alone, row.answer.calls, TASK.tool_map)


def cascade(
    cheap: Callable[..., str], dear: Callable[..., str] = author, **settings: Any
) -> tuple[Any, FakeEngine, Bench]:
    small = FakeEngine(cheap, Price(dollars_per_million_in=10_000), "cheap")
    at = bench(dear, shelf=Shelf(lambda block: small))
    return build("steps", {"method": "cascade", "engine": {"method": "replay", "source": "x"}, **settings}), small, at


def test_the_dear_model_answers_only_what_the_cheap_one_got_wrong() -> None:
    def cheap(prompt: Prompt, *_: Any) -> str:
        wrong = {"turn off the bedroom": "TurnOff area Cellar", "nonsense": "[broken"}
        return wrong.get(asked(prompt), RIGHT.get(asked(prompt), "~"))

    step, _, at = cascade(cheap)
    found = step.run(traces("turn on the kitchen", "turn off the bedroom", "tell me a joke", "nonsense"), at)
    assert [trace.by for trace in found] == ["cheap", "fake", "cheap", "fake"]
    assert found[1].calls == (Call("TurnOff", {"area": "Bedroom"}),)
    assert (found[2].calls, found[3].calls) == ((), None)
    assert {asked(prompt) for prompt, *_ in engine_of(at).asked} == {"turn off the bedroom", "nonsense"}
    assert found[0].cost.dollars == pytest.approx(0.1)
    # Two tries each with the cheap model, whose first left the grammar; one, or two, with the dear one.
    assert found[1].cost.dollars == pytest.approx(0.2 + 1.0)
    assert found[3].cost.dollars == pytest.approx(0.2 + 2.0)
    assert found[1].asked == 3
    assert step.calls_per_request == pytest.approx(1.3)


def test_an_unlikely_answer_is_doubtful_too() -> None:
    step, small, at = cascade(author, least_logprob=-0.5)
    sure = {"turn on the kitchen": -0.2, "dim the hall": -4.0}
    small._write = lambda prompt, sampling, grammar: Completion(  # type: ignore[method-assign]
        RIGHT[asked(prompt)], 10, 4, logprob=sure[asked(prompt)]
    )
    found = step.run(traces(*sure), at)
    assert [trace.by for trace in found] == ["cheap", "fake"], "-0.2 and -4.0 over four tokens are -0.05 and -1"
    assert step.needs == ("logprobs",)
    assert build("steps", {"method": "cascade", "engine": "replay"}).needs == ()
    plain, _, at = cascade(author, least_logprob=-0.5)
    with pytest.raises(UserError, match="log-probabilities"):
        plain.run(traces("dim the hall"), at)


def test_a_cascade_may_run_several_steps() -> None:
    step, small, at = cascade(author, steps=["retrieve", "fill", "check"])
    (found,) = step.run(traces("dim the hall"), at)
    assert found.examples
    assert (found.by, found.asked, len(small.asked)) == ("cheap", 1, 1)
    with pytest.raises(UserError, match="steps.0"):
        build("steps", {"method": "cascade", "engine": "replay", "steps": ["fil"]})


def test_an_unreadable_dear_answer_does_not_replace_a_readable_cheap_one() -> None:
    step, _, at = cascade(lambda *_: "TurnOn area Hall", lambda *_: "[broken")
    doubting = replace(at, task=replace(TASK, hook=lambda text, calls: ("fail", "no")))
    (found,) = step.run(traces("x"), doubting)
    assert (found.calls, found.by) == ((Call("TurnOn", {"area": "Hall"}),), "cheap")
