"""Teachers and judges that somebody bills: paid through the ledger, within its budget, nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from supertiny.core.errors import BudgetReached
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.methods import build
from supertiny.core.payments import Payments
from supertiny.core.records import Call, Example, Price, Prompt, Sampling, TokenScores
from supertiny.training.learners._policy import Trials
from supertiny.training.learners.hybrid import Hybrid
from supertiny.training.learners.reinforce import Reinforce
from supertiny.training.lessons import encode_lessons
from supertiny.training.practice import Practice
from supertiny.transfer import supplies
from supertiny.transfer.paid import PaidEngine
from supertiny.transfer.settings import Settings
from supertiny.transfer.supplies import Supplies
from tests.fake_engine import FakeEngine
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, write_student

PRICE = Price(dollars_per_million_in=10.0, dollars_per_million_out=40.0)
FORM, TASK = build("formats", "compact"), small_task()


class Hosted(FakeEngine):
    """One token a text, and `top` best ones, of which every try is told before it is sent; dies at one of a number."""

    def __init__(self, dies_at: int = -1) -> None:
        super().__init__(price=PRICE, name="hosted")
        self.dies_at = dies_at
        self.scored: list[str] = []
        self.rounds = 0

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        return [self._scored(prompt, text, top) for prompt, text in zip(prompts, continuations, strict=True)]

    def _scored(self, prompt: Prompt, text: str, top: int) -> TokenScores:
        if len(self.scored) == self.dies_at:
            raise KeyboardInterrupt
        self.scored.append(prompt.text + text)
        best = -np.arange(1, top + 1, dtype=np.float32)[None] / 3
        own = np.array([-0.25], dtype=np.float32)
        return TokenScores(np.array([7]), np.arange(top)[None], best, own, tokens_in=50, tokens_out=1)

    def score_paid(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[str],
        top: int,
        done: Callable[[int, TokenScores], None],
        payments: Payments,
    ) -> None:
        self.rounds += 1
        for place, (prompt, text) in enumerate(zip(prompts, continuations, strict=True)):
            payments.begin(place)
            done(place, self._scored(prompt, text, top))


PROMPTS = [Prompt(text=f"request {number}> ") for number in range(6)]
TEXTS = ["a"] * 6


def test_scores_are_paid_once_whatever_kills_the_run(tmp_path: Path) -> None:
    whole = Hosted().score(PROMPTS, TEXTS, 3)
    first, second, third = Hosted(dies_at=4), Hosted(), Hosted()
    with pytest.raises(KeyboardInterrupt):
        PaidEngine(Ledger(tmp_path / "ledger"), first, "teacher").score(PROMPTS, TEXTS, 3)
    ledger = Ledger(tmp_path / "ledger")
    found = PaidEngine(ledger, second, "teacher").score([*PROMPTS, PROMPTS[0]], [*TEXTS, "a"], 3)
    assert [*first.scored, *second.scored] == [prompt.text + "a" for prompt in PROMPTS]
    (bill,) = ledger.bills()
    assert (bill.purpose, bill.calls, bill.tokens_in, bill.tokens_out) == ("teacher", 6, 300, 6)
    assert bill.dollars == pytest.approx(6 * (50 * 10 + 40) / 1e6)
    again = PaidEngine(Ledger(tmp_path / "ledger"), third, "teacher").score(PROMPTS, TEXTS, 3)
    assert (third.scored, third.rounds) == ([], 0), "whose scores are all known is not asked at all"
    for one in (found[:6], again):
        for left, right in zip(one, whole, strict=True):
            assert vars(left).keys() == vars(right).keys()
            assert all(np.array_equal(value, vars(right)[name]) for name, value in vars(left).items())
    assert len(found) == 7
    PaidEngine(ledger, third, "teacher").score(PROMPTS[:1], TEXTS[:1], 2)
    assert len(third.scored) == 1, "other best tokens are another question"


def test_the_budget_is_never_crossed(tmp_path: Path) -> None:
    ledger, engine = Ledger(tmp_path / "ledger", Budget(tokens=300)), Hosted()
    with pytest.raises(BudgetReached) as told:
        PaidEngine(ledger, engine, "teacher").score(PROMPTS, TEXTS, 3)
    assert "prototype.budget" in told.value.hint
    assert 0 < len(engine.scored) < 6
    assert ledger.spent().tokens <= 300


def bench(ledger: Ledger, engine: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Supplies:
    """Supplies in which every engine that a recipe names is this one."""
    known = build

    def built(family: str, *more: Any) -> Any:
        return SimpleNamespace(open=lambda: engine) if family == "engines" else known(family, *more)

    monkeypatch.setattr(supplies, "build", built)
    return Supplies(Settings(), SimpleNamespace(task=TASK, ledger=ledger), FORM, folder / ".student")  # type: ignore[arg-type]


def test_a_judge_within_another_reward_is_paid_by_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(lambda *_: json.dumps({"verdict": "as good"}), PRICE, "hosted")
    ledger = Ledger(tmp_path / "ledger")
    practice = bench(ledger, engine, monkeypatch, tmp_path)._practice(open_pupil(write_student(tmp_path / "student")))
    gold = examples("labelled", 1)[0]
    near = practice.judged(gold.request, (1, 2), (0.0, 0.0), "TurnOn area Hall", True)
    assert near.answer is not None
    assert near.answer.calls == (Call("TurnOn", {"area": "Hall"}),)
    block = {"method": "brevity", "of": {"method": "judge", "engine": {"method": "openai", "model": "m"}}}
    for _ in range(2):
        assert practice.served(build("rewards", block))(gold, [near]) == [1.0]
    assert len(engine.asked) == 1, "a run that goes on is told what was paid before"
    (bill,) = ledger.bills()
    assert (bill.calls, bill.purpose) == (1, "judging the student's answers")
    assert bill.dollars > 0


def test_an_engine_that_nobody_bills_stays_beside_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, engine = Ledger(tmp_path / "ledger", Budget(tokens=0)), FakeEngine()
    opened = bench(ledger, engine, monkeypatch, tmp_path)._open("openvino", "transfer.teacher", "x")
    assert opened is engine
    assert opened.complete([Prompt(text="a")], Sampling(2))[0].text == "re: a"


def test_nobody_waits_for_a_providers_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = Hosted(), Hosted()
    slow.at_once = quick  # type: ignore[attr-defined]
    paid = bench(Ledger(tmp_path / "ledger"), slow, monkeypatch, tmp_path)._open("openai", "the judge's engine", "x")
    paid.complete([Prompt(text="a")], Sampling(2))
    paid.score(PROMPTS[:1], TEXTS[:1])
    assert (len(quick.asked), len(quick.scored)) == (1, 1)
    assert (slow.asked, slow.scored) == ([], [])


@pytest.mark.parametrize("learner", [Reinforce, Hybrid])
def test_learners_have_their_judge_opened_by_the_run_at_the_first_doubt(
    learner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = {"method": "openai", "model": "m"}
    opened: list[Any] = []
    made: list[Trials] = []

    def open_engine(asked: Any) -> Any:
        opened.append(asked)
        return FakeEngine()

    monkeypatch.setattr(Trials, "check_signal", lambda trials: made.append(trials))

    pupil = open_pupil(write_student(tmp_path))
    practice = Practice(FORM, TASK.tools, TASK.verify, max_tokens=4, open_engine=open_engine)
    chosen = learner(reward={"method": "judge", "engine": block}, samples=2, least_signal=0.0)
    lessons = encode_lessons(examples("labelled", 2), FORM, TASK.tools, pupil.tokenizer)
    chosen.fit(pupil, lessons, 3, practice=practice)
    gold, (reward,) = examples("labelled", 1)[0], [trials.reward for trials in made]
    right, other = (practice.judged(gold.request, (1,), (0.0,), text, True) for text in (_written(gold), "~no"))
    assert reward(gold, [right]) == [1.0]
    assert opened == [], "what nobody doubts needs no judge"
    for _ in range(2):
        assert reward(gold, [other]) == [0.0]
    assert opened == [block]


def _written(gold: Example) -> str:
    return FORM.write(gold.answer)  # type: ignore[no-any-return]
