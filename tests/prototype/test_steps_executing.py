"""Calls that are carried out: results in the trace, functions that fail or hang, plans whose calls wait for others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.records import Answer, Call, Request, Tool
from supertiny.core.task import load_task
from supertiny.prototype.bench import Result, Trace
from supertiny.prototype.steps._executing import told
from supertiny.prototype.steps._references import plan_problem, resolved, waits_for
from tests.small_task import small_task, write_task
from tests.step_bench import TASK, answered, bench, engine_of, traces

ON = Call("TurnOn", {"area": "Hall"})
OFF = Call("TurnOff", {"area": "Attic"})
PAY = Call("Pay", {"sum": "$5"})
PAY_ANN = Call("Pay", {"note": "${2}", "to": "Ann"})


def doing(hook: Callable[[str, Any], Any], *given: Trace, **settings: Any) -> list[Trace]:
    step = build("steps", {"method": "execute", **settings})
    return list(step.run(given, bench(task=replace(TASK, execute=hook))))


def test_each_call_is_carried_out_once_and_its_result_stands_in_the_trace() -> None:
    done: list[tuple[str, Any]] = []

    def hook(text: str, call: Mapping[str, Any]) -> Any:
        done.append((text, call))
        return {"state": call["name"], "again": (1, 2)}

    first, none, unread = doing(hook, answered("x", ON, OFF), answered("no"), traces("y")[0])
    assert [result.call for result in first.results] == [ON, OFF]
    assert first.results[0].value == {"state": "TurnOn", "again": [1, 2]}
    assert sorted(done, key=str) == [("x", OFF.to_json()), ("x", ON.to_json())]
    assert (none.results, none.calls, unread.results, unread.calls) == ((), (), (), None)
    assert doing(hook, first) == [first], "what has a result is not carried out again"
    assert len(done) == 2


def test_mistakes_of_the_function_are_text_in_the_trace() -> None:
    def hook(text: str, call: Mapping[str, Any]) -> Any:
        if call["name"] == "TurnOn":
            raise KeyError("no lamp")
        return object

    (found,) = doing(hook, answered("x", ON, OFF))
    assert found.calls == (ON, OFF)
    assert found.results[0] == Result(ON, None, "KeyError: 'no lamp'")
    assert found.results[1].value == "<class 'object'>", "what JSON has no word for is its text"


def test_a_function_that_hangs_is_left_alone() -> None:
    held = threading.Event()

    def hook(text: str, call: Mapping[str, Any]) -> str:
        if call["name"] == "TurnOn":
            held.wait(30)
        return "ok"

    (found,) = doing(hook, answered("x", ON, OFF), seconds=1.0)
    held.set()
    assert found.results == (Result(ON, None, "no result within 1 seconds"), Result(OFF, "ok"))


@pytest.mark.parametrize("at_once", [1, 3])
def test_calls_are_carried_out_together_up_to_a_number(at_once: int) -> None:
    meeting, lock, most, now = threading.Barrier(at_once), threading.Lock(), [0], [0]

    def hook(*_: Any) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        meeting.wait(10)
        with lock:
            now[0] -= 1

    found = doing(hook, *[answered(str(number), ON) for number in range(6)], at_once=at_once)
    assert most == [at_once]
    assert not any(result.error for trace in found for result in trace.results)


def test_without_a_function_it_is_told() -> None:
    with pytest.raises(UserError, match="no function execute"):
        build("steps", "execute").run([answered("x", ON)], bench(task=small_task()))
    assert build("steps", "execute").needs == ("execute",)


def test_the_model_is_shown_results_and_may_go_on() -> None:
    script = {1: "TurnOff area Attic", 2: "TurnOff area Attic\nDim area Hall; level 5", 3: "~"}

    def author(prompt: Any, *_: Any) -> str:
        results = str(prompt.messages[-1]["content"])
        return script[results.count(" -> ")]

    at = bench(author, task=replace(TASK, execute=lambda text, call: f"{call['name']}: fine"))
    (found,) = build("steps", {"method": "execute", "rounds": 5}).run([answered("x", ON)], at)
    assert found.calls == (ON, OFF, Call("Dim", {"area": "Hall", "level": 5}))
    assert [result.value for result in found.results] == ["TurnOn: fine", "TurnOff: fine", "Dim: fine"]
    assert found.asked == 3, "it ends when no call is new"
    first = engine_of(at).asked[0][0].messages
    assert first[-2] == {"role": "assistant", "content": "TurnOn area Hall"}
    assert '1. TurnOn {"area": "Hall"} -> TurnOn: fine' in str(first[-1]["content"])


def test_a_call_that_failed_is_replaced_by_the_one_that_mends_it() -> None:
    def hook(text: str, call: Mapping[str, Any]) -> str:
        if call["arguments"]["area"] == "Attic":
            raise ValueError("no lamp there")
        return "ok"

    at = bench(lambda *_: "TurnOff area Hall", task=replace(TASK, execute=hook))
    (found,) = build("steps", {"method": "execute", "rounds": 2}).run([answered("x", ON, OFF)], at)
    assert found.calls == (ON, Call("TurnOff", {"area": "Hall"}))
    assert [result.error for result in found.results] == ["", ""]
    assert "error: ValueError: no lamp there" in str(engine_of(at).asked[0][0].messages[-1]["content"])


@pytest.mark.parametrize("rounds", [0, 1])
def test_calls_of_one_function_that_were_made_together_stay_though_one_fails(rounds: int) -> None:
    def hook(text: str, call: Mapping[str, Any]) -> str:
        if call["arguments"]["area"] == "Attic":
            raise ValueError("no lamp there")
        return "ok"

    both = (OFF, Call("TurnOff", {"area": "Hall"}))
    at = bench(lambda *_: "~", task=replace(TASK, execute=hook))
    (found,) = build("steps", {"method": "execute", "rounds": rounds}).run([answered("x", *both)], at)
    assert found.calls == both
    assert [bool(result.error) for result in found.results] == [True, False]
    assert found.failure == "TurnOff: ValueError: no lamp there"


def test_an_answer_that_is_written_anew_has_no_results_of_the_old_one() -> None:
    at = bench(task=replace(TASK, execute=lambda *_: "ok"))
    (done,) = build("steps", "execute").run([answered("dim the hall", Call("Dim", {"area": "Hall", "level": 9}))], at)
    (again,) = build("steps", "fill").run([done], at)
    assert (again.calls, again.results) == ((Call("Dim", {"area": "Hall", "level": 5}),), ())


def test_check_hands_back_what_the_function_said() -> None:
    def hook(text: str, call: Mapping[str, Any]) -> str:
        raise ValueError("level 9 is too bright")

    at = bench(task=replace(TASK, execute=hook))
    given = answered("dim the hall", Call("Dim", {"area": "Hall", "level": 9}), raw="Dim area Hall; level 9")
    (done,) = build("steps", "execute").run([given], at)
    (found,) = build("steps", "check").run([done], at)
    assert "That is wrong: Dim: ValueError: level 9 is too bright." in str(engine_of(at).asked[-1][0].messages[-1])
    assert (found.calls, found.results) == ((Call("Dim", {"area": "Hall", "level": 5}),), ())


def test_hooks_may_execute_without_verifying(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task")
    (folder / "hooks.py").write_text("def execute(text, call):\n    return call['name'] + text\n", encoding="utf-8")
    task = load_task(folder)
    assert (task.hook, task.execute is not None) == (None, True)
    (found,) = build("steps", "execute").run([answered("x", ON)], bench(task=task))
    assert found.results == (Result(ON, "TurnOnx"),)
    (folder / "hooks.py").write_text("def carry_out(text, call): ...\n", encoding="utf-8")
    with pytest.raises(UserError, match="no function verify"):
        load_task(folder)


def test_long_results_are_shortened_for_the_model() -> None:
    assert len(told([Result(ON, "x" * 5000)])) < 500


FIND = Tool(
    "Find", "finds a person", {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
)
MEET = Tool(
    "Meet",
    "makes a meeting",
    {
        "type": "object",
        "properties": {"who": {"type": "integer"}, "with": {"type": "integer"}, "note": {"type": "string"}},
        "required": ["who"],
    },
)


def planned(written: Callable[..., str] | str, hook: Any = None, text: str = "x") -> tuple[Trace, Any]:
    at = bench(
        written if callable(written) else lambda *_: written, task=replace(small_task([FIND, MEET]), execute=hook)
    )
    done = build("steps", "plan").run([Trace(Request.from_text(text, "1"))], at)
    (found,) = build("steps", "execute").run(done, at) if hook else done
    return found, engine_of(at)


def finding(text: str, call: Mapping[str, Any]) -> Any:
    ids = {"Ann": 7, "Bob": 8}
    return {"id": ids[call["arguments"]["name"]], "tags": ["a", "b"]} if call["name"] == "Find" else "met"


@pytest.mark.parametrize("numbers", [("", "", ""), ("1. ", "2. ", "3. ")])
def test_references_are_replaced_by_results(numbers: tuple[str, ...]) -> None:
    lines = ("Find name Ann", "Find name Bob", "Meet note for ${1.tags.1}; who $1.id; with $2.id")
    found, engine = planned("\n".join(a + b for a, b in zip(numbers, lines, strict=True)), finding)
    assert found.calls is not None
    assert found.calls[2] == Call("Meet", {"note": "for b", "who": 7, "with": 8})
    assert [result.value for result in found.results][2] == "met"
    assert len(engine.asked) == 1
    assert "$1" in str(engine.asked[0][0].messages[0]["content"])


def test_independent_calls_are_carried_out_together_and_dependent_ones_after() -> None:
    both, order = threading.Barrier(2), []

    def hook(text: str, call: Mapping[str, Any]) -> Any:
        if call["name"] == "Find":
            both.wait(10)
        order.append(call["name"])
        return 3

    found, _ = planned("Meet who $2\nFind name Ann\nFind name Bob", hook)
    assert order == ["Find", "Find", "Meet"]
    assert found.calls == (Call("Meet", {"who": 3}), Call("Find", {"name": "Ann"}), Call("Find", {"name": "Bob"}))


def test_without_hooks_a_plan_is_a_list_of_calls() -> None:
    found, _ = planned("Find name Ann\nMeet who $1.id")
    assert found.calls == (Call("Find", {"name": "Ann"}), Call("Meet", {"who": "$1.id"}))
    assert found.results == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Find name Ann\nMeet who $5", "call 2 refers to $5, and there is no call 5"),
        ("Meet who $2\nMeet who $1", "calls 1, 2 wait for each other"),
        ("Meet who $1", "call 1 waits for itself"),
    ],
)
def test_an_invalid_plan_is_handed_back_once(text: str, problem: str) -> None:
    def author(prompt: Any, *_: Any) -> str:
        return "Find name Ann\nMeet who $1.id" if problem in str(prompt.messages[-1]["content"]) else text

    found, engine = planned(author, finding)
    assert found.calls == (Call("Find", {"name": "Ann"}), Call("Meet", {"who": 7}))
    assert found.asked == len(engine.asked) == 2
    carried: list[Any] = []
    stubborn, engine = planned(text, lambda text, call: carried.append(call))
    assert len(engine.asked) == stubborn.asked == 2
    assert stubborn.notes == (f"plan: {problem}",)
    assert (stubborn.calls, stubborn.results, stubborn.raw) == (None, (), text), "what cannot be ordered is no answer"
    assert not carried


@pytest.mark.parametrize("value", ["$1", "$5", "${1.id}", "say ${5}"])
def test_a_reference_that_stands_for_nothing_is_never_carried_out(value: str) -> None:
    carried: list[Any] = []
    calls = (Call("Meet", {"note": value}), Call("Find", {"name": "Ann"}), Call("Meet", {"note": [{"x": value}]}))
    at = bench(lambda *_: "~", task=replace(TASK, execute=lambda text, call: carried.append(call)))
    plan = replace(answered("x", *calls), planned=True)
    (found,) = build("steps", {"method": "execute", "rounds": 1}).run([plan], at)
    assert all("$" not in str(call) for call in carried)
    assert {call["name"] for call in carried} <= {"Find", "Meet"}
    assert found.results[0].error
    assert not found.results[1].error
    said = replace(answered(f"it costs {value}", *calls[:1]), planned=True)
    (paid,) = build("steps", "execute").run([said], at)
    assert not paid.results[0].error, "what the request says is no reference"


def test_calls_that_no_plan_wrote_have_no_references() -> None:
    """In a shop, $5 is money, whether or not the request writes it so."""
    carried: list[Any] = []
    (found,) = doing(lambda text, call: carried.append(call), answered("pay five dollars", PAY, PAY_ANN))
    assert found.calls == (PAY, PAY_ANN)
    assert sorted(carried, key=str) == [PAY_ANN.to_json(), PAY.to_json()]
    assert found.failure == ""


def test_a_plan_is_carried_out_once() -> None:
    found, _ = planned("Find name Ann\nMeet who $1.id", finding)
    assert not found.planned, "what was carried out is no plan any more"
    unplanned, _ = planned("Find name Ann\nMeet who $1.id")
    assert unplanned.planned
    assert not unplanned.answered("x", Answer()).planned


def test_a_request_that_was_routed_to_none_is_not_planned() -> None:
    given = replace(traces("x")[0], tool="", calls=())
    at = bench()
    assert build("steps", "plan").run([given], at) == [given]
    assert not engine_of(at).asked


def test_what_waits_for_a_failure_fails_too() -> None:
    found, _ = planned("Find name Zoe\nMeet who $1.id\nMeet who $2\nFind name Bob\nMeet who $4.age", finding)
    errors = [result.error for result in found.results]
    assert errors == ["KeyError: 'Zoe'", "call 1 failed", "call 2 failed", "", "the result has no part 'age'"]


PLAN = "Find name Ann\nFind name Bob\nMeet note for ${2.id}; who $2.id"


def test_steps_between_leave_a_plan_as_it_is() -> None:
    """What a reference becomes is not known yet: no schema and no hook can judge it."""
    found, at = planned(PLAN)[0], bench(task=small_task([FIND, MEET]))
    for name in ("check", {"method": "vote", "only_failed": True}):
        assert build("steps", name).run([found], at) == [found]
    hooked = replace(at, task=replace(at.task, hook=lambda text, calls: ("fail", "who is that?")))
    assert hooked.complaint(found) == ""
    assert not engine_of(at).asked
    wrong = replace(found, calls=(Call("Meet", {"who": "$4"}),))
    assert at.complaint(wrong) == "call 1 refers to $4, and there is no call 4"
    assert "whom" in at.complaint(replace(found, calls=(*(found.calls or ()), Call("Meet", {"whom": "$1"}))))
    assert at.complaint(replace(found, planned=False)), "of other calls, $2.id is no number"


def test_money_is_no_reference() -> None:
    call = Call("Meet", {"note": "$5", "who": 1})
    assert waits_for(call, "pay $5 to Ann") == set()
    assert waits_for(call, "pay $50, $5,000 or $5.20 to Ann") == {5}
    assert waits_for(call, "to Ann I owe $5.") == set()
    assert plan_problem([call], "pay $5 to Ann") == ""
    assert resolved(call, "pay $5 to Ann", {}) == call
    assert waits_for(Call("Meet", {"note": ["see ${2} and ${3.id}", {"a": "$1"}]}), "") == {1, 2, 3}


def test_a_result_that_looks_like_a_reference_is_none() -> None:
    found, _ = planned("Find name Ann\nMeet who 1; note $1", lambda text, call: "$9")
    assert found.calls is not None
    assert found.calls[1].arguments["note"] == "$9"
    assert not any(result.error for result in found.results)


def test_numbers_of_the_request_keep_their_kind() -> None:
    found, _ = planned("Find name 12\nMeet who 12", lambda text, call: 1)
    assert found.calls == (Call("Find", {"name": "12"}), Call("Meet", {"who": 12}))


def test_a_grammar_of_plans_lets_references_in_and_nothing_else_new() -> None:
    area = {"type": "string", "enum": ["Hall", "Attic"]}
    lamp = Tool("Lamp", "", {"type": "object", "properties": {"area": area, "level": {"type": "integer"}}})
    answers = iter(["Lamp area Cellar", "Lamp area $1", "Lamp area $1"])
    at = bench(lambda *_: next(answers), task=small_task([lamp]))
    (found,) = build("steps", "plan").run(traces("x"), at)
    grammar = engine_of(at).asked[1][2]
    assert grammar is not None
    assert '"$1" | "$2"' in grammar.text
    assert "bare" not in grammar.text, "no free text where there is none in the functions"
    assert found.asked == 3, "$1 refers to itself: handed back once, and again no plan"
