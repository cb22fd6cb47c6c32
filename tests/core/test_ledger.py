"""The ledger: each call once, whatever happens; budgets never crossed; shares that add up."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from supertiny.core import ledger as ledger_module
from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling
from tests.fake_engine import FakeEngine

GREEDY = Sampling()


def prompts(count: int, start: int = 0) -> list[Prompt]:
    return [Prompt(text=f"prompt {number}") for number in range(start, start + count)]


def texts(completions: Sequence[Completion]) -> list[str]:
    return [completion.text for completion in completions]


class Clock:
    """Time that passes when an engine works, so that no test waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(ledger_module.time, "perf_counter", lambda: self.now)


class TimedEngine(FakeEngine):
    """One prompt after the other, each takes `seconds` of the clock."""

    def __init__(self, clock: Clock, seconds: Sequence[float], price: Price | None = None) -> None:
        super().__init__(price=price)
        self.clock, self.seconds = clock, list(seconds)

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        written = super().complete(prompts, sampling, grammar)
        for index, completion in enumerate(written):
            self.clock.now += self.seconds[(len(self.asked) - len(prompts) + index) % len(self.seconds)]
            if done:
                done(index, completion)
        return written


def test_answers_come_in_order_and_are_the_engines(tmp_path: Path) -> None:
    wrapped = Ledger(tmp_path / "ledger.sqlite").wrap(FakeEngine(), "test")
    assert texts(wrapped.complete(prompts(9), GREEDY)) == [f"re: prompt {number}" for number in range(9)]
    assert wrapped.complete([], GREEDY) == []


def test_the_same_call_is_computed_once(tmp_path: Path) -> None:
    engine = FakeEngine()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    twice = [*prompts(3), *prompts(3)]
    first = ledger.wrap(engine, "one").complete(twice, GREEDY)
    assert len(engine.asked) == 3, "equal prompts of one batch are computed once"
    assert ledger.wrap(engine, "two").complete(twice, GREEDY) == first
    assert texts(ledger.wrap(engine, "two").complete(prompts(4), GREEDY))[3] == "re: prompt 3"
    assert len(engine.asked) == 4
    ledger.close()
    reopened = Ledger(tmp_path / "ledger.sqlite")
    assert reopened.wrap(engine, "three").complete(twice, GREEDY) == first
    assert len(engine.asked) == 4
    assert [(bill.purpose, bill.calls) for bill in reopened.bills()] == [("one", 3), ("two", 1)]


@pytest.mark.parametrize(
    "change",
    ["engine", "text", "messages", "max_tokens", "temperature", "seed", "stop", "grammar", "grammar kind"],
)
def test_what_changes_the_answer_is_another_call(change: str, tmp_path: Path) -> None:
    prompt, sampling, grammar = Prompt(({"role": "user", "content": "x"},), "t"), GREEDY, Grammar("regex", "a")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.wrap(FakeEngine(), "test").complete([prompt], sampling, [grammar])
    engine = FakeEngine(name="other" if change == "engine" else "fake")
    prompt = {
        "text": replace(prompt, text="u"),
        "messages": replace(prompt, messages=({"role": "user", "content": "y"},)),
    }.get(change, prompt)
    sampling = {
        "max_tokens": replace(sampling, max_tokens=1),
        "temperature": replace(sampling, temperature=0.5),
        "seed": replace(sampling, seed=1),
        "stop": replace(sampling, stop=("\n",)),
    }.get(change, sampling)
    grammar = {"grammar": Grammar("regex", "b"), "grammar kind": Grammar("ebnf", "a")}.get(change, grammar)
    ledger.wrap(engine, "test").complete([prompt], sampling, [grammar])
    assert len(engine.asked) == 1


def test_a_hint_on_how_to_compute_is_not_another_call(tmp_path: Path) -> None:
    engine = FakeEngine()
    wrapped = Ledger(tmp_path / "ledger.sqlite").wrap(engine, "test")
    messages = ({"role": "user", "content": "x"},)
    wrapped.complete([Prompt(messages), Prompt(messages, shared=1)], GREEDY)
    assert len(engine.asked) == 1


def test_scripts_pass_unharmed(tmp_path: Path) -> None:
    said = "включи 灯 💡\u2028\x00"
    Ledger(tmp_path / "ledger.sqlite").wrap(FakeEngine(), "тест").complete([Prompt(text=said)], GREEDY)
    reopened = Ledger(tmp_path / "ledger.sqlite")
    assert texts(reopened.wrap(FakeEngine(lambda *_: "computed again"), "x").complete([Prompt(text=said)], GREEDY)) == [
        f"re: {said}"
    ]
    assert reopened.bills()[0].purpose == "тест"


def test_half_a_character_does_not_stop_a_run(tmp_path: Path) -> None:
    engine = FakeEngine(lambda *_: "灯 \ud83d")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for _ in range(2):
        assert texts(ledger.wrap(engine, "test").complete(prompts(1), GREEDY)) == ["灯 ?"]
    assert len(engine.asked) == 1


def test_done_is_told_of_every_prompt_once(tmp_path: Path) -> None:
    ledger, done, engine = Ledger(tmp_path / "ledger.sqlite"), [], FakeEngine()
    wrapped = ledger.wrap(engine, "test")
    wrapped.complete(prompts(2), GREEDY)
    wrapped.complete([*prompts(5), *prompts(1)], GREEDY, done=lambda index, c: done.append((index, c.text)))
    assert sorted(done) == [(index, f"re: prompt {index % 5}") for index in range(6)]
    assert len(engine.asked) == 5


def test_an_answer_that_failed_is_not_kept(tmp_path: Path) -> None:
    class Failing(FakeEngine):
        def _write(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> Completion:
            return Completion("", finish="error" if len(self.asked) == 1 else "stop")

    engine = Failing()
    wrapped = Ledger(tmp_path / "ledger.sqlite").wrap(engine, "test")
    assert wrapped.complete(prompts(1), GREEDY)[0].finish == "error"
    assert wrapped.complete(prompts(1), GREEDY)[0].finish == "error" or len(engine.asked) == 2
    wrapped.complete(prompts(1), GREEDY)
    assert len(engine.asked) == 2


def test_an_answer_that_failed_but_was_paid_is_kept_and_billed(tmp_path: Path) -> None:
    class Filtered(FakeEngine):
        def _write(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> Completion:
            return Completion("", tokens_in=500, finish="error")

    engine = Filtered()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for _ in range(2):
        assert ledger.wrap(engine, "test").complete(prompts(1), GREEDY)[0].finish == "error"
    assert len(engine.asked) == 1
    assert [(bill.calls, bill.tokens_in) for bill in ledger.bills()] == [(1, 500)]


def test_shares_of_seconds_add_up_to_the_engines_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    engine = TimedEngine(clock, [3.0, 0.5, 0.25, 1.25])
    done = ledger.wrap(engine, "test").complete(prompts(10), GREEDY)
    assert sum(completion.seconds for completion in done) == pytest.approx(clock.now - 100)
    clock.now += 50  # time between calls is nobody's
    ledger.wrap(engine, "test").complete(prompts(4, 8), GREEDY)
    (bill,) = ledger.bills()
    assert bill.seconds == pytest.approx(clock.now - 150)
    assert (bill.calls, bill.tokens_in, bill.tokens_out) == (12, 120, 24)


PRICE = Price(dollars_per_million_in=1000, dollars_per_million_out=5000)


@pytest.mark.parametrize("limit", [0.1, 0.5, 1.0, 3.0])
def test_the_budget_of_dollars_is_never_crossed(limit: float, tmp_path: Path) -> None:
    engine = FakeEngine(price=PRICE)
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(dollars=limit))
    with pytest.raises(BudgetReached, match=f"{limit:g} dollars") as told:
        ledger.wrap(engine, "test").complete(prompts(600), Sampling(max_tokens=4))
    assert "prototype.budget" in told.value.hint
    spent = sum(bill.dollars for bill in ledger.bills())
    assert spent <= limit
    assert spent == pytest.approx(len(engine.asked) * 0.02)
    assert len(engine.asked) < 600
    if limit >= 0.5:
        assert spent > 0.5 * limit, "what is certain to fit is sent"


@pytest.mark.parametrize("limit", [150, 1000, 5000])
def test_the_budget_of_tokens_is_never_crossed(limit: int, tmp_path: Path) -> None:
    engine = FakeEngine()
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(tokens=limit))
    with pytest.raises(BudgetReached, match=f"{limit} tokens"):
        ledger.wrap(engine, "test").complete(prompts(600), Sampling(max_tokens=4))
    spent = sum(bill.tokens_in + bill.tokens_out for bill in ledger.bills())
    assert spent <= limit
    assert engine.asked == [] if limit == 150 and not spent else spent > 0
    with pytest.raises(BudgetReached):
        ledger.wrap(engine, "test").complete(prompts(1, 900), Sampling(max_tokens=10_000))
    assert sum(bill.tokens_in + bill.tokens_out for bill in ledger.bills()) == spent


@pytest.mark.parametrize("seconds", [[2.0], [2.0, 0.5, 0.1, 3.9], [1.0] * 40 + [2.0]])
def test_the_budget_of_minutes_is_never_crossed(
    seconds: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    engine = TimedEngine(clock, seconds)
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(minutes=1))
    with pytest.raises(BudgetReached, match="1 minutes"):
        ledger.wrap(engine, "test").complete(prompts(600), GREEDY)
    assert sum(bill.seconds for bill in ledger.bills()) <= 60
    assert clock.now - 100 <= 60
    assert clock.now - 100 > 45


def test_the_budget_of_dollars_counts_machine_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(Clock(monkeypatch), [2.0], Price(dollars_per_hour=3600))
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(dollars=30))
    with pytest.raises(BudgetReached):
        ledger.wrap(engine, "test").complete(prompts(100), GREEDY)
    assert 20 <= sum(bill.dollars for bill in ledger.bills()) <= 30


def test_what_is_known_costs_nothing_even_when_the_budget_is_spent(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.sqlite").wrap(FakeEngine(), "test").complete(prompts(5), GREEDY)
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(tokens=1))
    assert len(ledger.wrap(FakeEngine(), "test").complete(prompts(5), GREEDY)) == 5
    with pytest.raises(BudgetReached):
        ledger.wrap(FakeEngine(), "test").complete(prompts(6), GREEDY)


def test_after_the_budget_is_raised_the_same_command_goes_on(tmp_path: Path) -> None:
    first = FakeEngine()
    small = Ledger(tmp_path / "ledger.sqlite", Budget(tokens=500))
    with pytest.raises(BudgetReached):
        small.wrap(first, "test").complete(prompts(60), Sampling(max_tokens=4))
    small.close()
    second = FakeEngine()
    Ledger(tmp_path / "ledger.sqlite").wrap(second, "test").complete(prompts(60), Sampling(max_tokens=4))
    assert first.asked
    assert len(first.asked) + len(second.asked) == 60


def test_a_full_disk_is_a_user_error_and_what_was_stored_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.wrap(FakeEngine(), "test").complete(prompts(2), GREEDY)
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
    long = FakeEngine(lambda *_: "x" * 20_000)
    with pytest.raises(UserError, match=r"cannot write .*ledger\.sqlite: database or disk is full") as told:
        ledger.wrap(long, "test").complete(prompts(3, 10), GREEDY)
    assert "disk space" in told.value.hint
    ledger.close()
    engine = FakeEngine()
    Ledger(tmp_path / "ledger.sqlite").wrap(engine, "test").complete(prompts(2), GREEDY)
    assert engine.asked == []


@pytest.mark.parametrize("content", [b"this is no database, but a text that is long enough to be one" * 20, None])
def test_what_is_no_ledger_is_told(content: bytes | None, tmp_path: Path) -> None:
    place = tmp_path / "ledger.sqlite"
    place.write_bytes(content) if content is not None else place.mkdir()
    with pytest.raises(UserError, match=r"ledger\.sqlite: not a ledger") as told:
        Ledger(place)
    assert "move it away" in told.value.hint


def test_a_ledger_that_is_damaged_later_is_told(tmp_path: Path) -> None:
    place = tmp_path / "ledger.sqlite"
    ledger = Ledger(place)
    ledger.wrap(FakeEngine(lambda *_: "y" * 3000), "test").complete(prompts(40), GREEDY)
    ledger.close()
    whole = place.read_bytes()
    place.write_bytes(whole[:4096] + b"\x07" * (len(whole) - 4096))
    with pytest.raises(UserError, match=r"ledger\.sqlite"):
        Ledger(place).wrap(FakeEngine(), "test").complete(prompts(40), GREEDY)


SLOW = dedent("""
    import sys, time
    from pathlib import Path
    from supertiny.core.ledger import Ledger
    from supertiny.core.records import Completion, Price, Prompt, Sampling

    class Slow:
        name, price = "slow", Price()
        def complete(self, prompts, sampling, grammar=None, done=None):
            for index, prompt in enumerate(prompts):
                time.sleep(0.004)
                with Path(sys.argv[2]).open("a") as log:
                    log.write(prompt.text + "\\n")
                done(index, Completion("re: " + prompt.text))

    prompts = [Prompt(text=f"prompt {number}") for number in range(200)]
    answers = Ledger(Path(sys.argv[1])).wrap(Slow(), "test").complete(prompts, Sampling())
    assert [answer.text for answer in answers] == ["re: " + prompt.text for prompt in prompts]
""")


def test_killed_in_a_batch_nothing_stored_is_lost_or_computed_again(tmp_path: Path) -> None:
    place, log = tmp_path / "ledger.sqlite", tmp_path / "computed.txt"
    command = [sys.executable, "-c", SLOW, str(place), str(log)]
    environment = {**os.environ, "PYTHONPATH": str(Path(ledger_module.__file__).parents[2])}
    generator, kills = random.Random(11), 0
    for _ in range(3):
        process = subprocess.Popen(command, env=environment)
        begun = len(log.read_text().splitlines()) if log.exists() else 0
        while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) <= begun):
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.08))
        process.kill()  # nothing, where it has ended
        kills += process.wait() == -signal.SIGKILL
        stored = _stored(place)
        assert stored <= set(log.read_text().splitlines())
        # All but the one that was in hand when the process was killed.
        assert len(set(log.read_text().splitlines()) - stored) <= 1
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    computed = log.read_text().splitlines()
    assert kills >= 2
    assert set(computed) == {f"prompt {number}" for number in range(200)} == _stored(place)
    assert len(computed) - 200 <= kills, "a call that was stored was computed again"


def _stored(place: Path) -> set[str]:
    with sqlite3.connect(place) as connection:
        return {json.loads(row[0])["text"] for row in connection.execute("SELECT prompt FROM calls")}
