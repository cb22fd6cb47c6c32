"""The estimate against what is then spent, with engines whose tokenizer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.ledger import Ledger
from supertiny.core.methods import build, validated
from supertiny.core.progress import Progress
from supertiny.core.recipe import Recipe
from supertiny.core.records import Call, Completion, Example, Grammar, Price, Prompt, Sampling
from supertiny.core.run import Run
from supertiny.core.task import Task
from supertiny.prototype import estimate as estimate_module
from supertiny.prototype import stage
from supertiny.prototype.estimate import Estimate, estimate, estimates, say_corrected
from supertiny.prototype.rehearsal import StepCalls, _Rehearsal
from supertiny.prototype.settings import Settings
from tests.fake_engine import FakeEngine
from tests.small_task import AREAS, example, small_task

PRICE = Price(dollars_per_million_in=10.0, dollars_per_million_out=40.0)
ENGINE = {
    "method": "openai",
    "model": "fake-model",
    "base_url": "http://localhost:1/v1",
    "dollars_per_million_in": 10.0,
    "dollars_per_million_out": 40.0,
}
SPENT = {"in": "tokens_in", "out": "tokens_out"}


def tokens(text: str) -> float:
    """A tokenizer of three characters a token: not what the bytes would say."""
    return -(-len(text) // 3)


def requests(count: int, start: int = 0) -> list[tuple[str, Call]]:
    """Requests of very unequal length."""
    made = []
    for number in range(start, start + count):
        area, level = AREAS[number % len(AREAS)], 10 + number % 80
        text = f"{'please ' * (number % 7)}dim the {area.lower()} to {level}, number {number}"
        made.append((text, Call("Dim", {"area": area, "level": level})))
    return made


@pytest.fixture
def task() -> Task:
    def split(name: str, start: int, count: int, gold: bool = True) -> list[Example]:
        rows = [example(text, [call], f"{name}-{place}") for place, (text, call) in enumerate(requests(count, start))]
        return rows if gold else [replace(row, answer=None) for row in rows]

    return small_task(
        labelled=split("labelled", 0, 40), valid=split("valid", 1000, 60), unlabelled=split("pool", 2000, 320, False)
    )


class CountingEngine(FakeEngine):
    """Answers by gold, counts by `tokens` with a template of `turn` tokens, and errs at every `wrong`th request."""

    def __init__(self, turn: int = 5, begin: int = 3, wrong: int = 0) -> None:
        super().__init__(price=PRICE, name="openai:http://localhost:1/v1:fake-model:0")
        self.turn, self.begin, self.wrong = turn, begin, wrong
        self.gold = {text: call for start in (0, 1000, 2000) for text, call in requests(400, start)}

    def _write(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> Completion:
        read = sum(tokens(m["content"]) + self.turn for m in prompt.messages) + self.begin
        text = self._text(prompt) if grammar is None or grammar.kind != "regex" else "Dim"
        return Completion(text, tokens_in=int(read), tokens_out=int(tokens(text)) + 1)

    def _text(self, prompt: Prompt) -> str:
        said = [m["content"] for m in prompt.messages if m["role"] == "user" and m["content"] in self.gold]
        call, again = self.gold[said[-1]], "That is wrong" in prompt.messages[-1]["content"]
        if "JSON list" in prompt.messages[0]["content"]:
            return str([call.to_json()]).replace("'", '"')
        number = int(said[-1].rpartition(" ")[2])
        area = "Atlantis" if self.wrong and number % self.wrong == 0 and not again else call.arguments["area"]
        return f"Dim area {area}; level {call.arguments['level']}"


def run_stage(
    task: Task, engine: FakeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[Settings, Ledger, list[str]]:
    """Runs the stage on the engine; gives settings, ledger and what was said."""
    chosen = validated(Settings, {"engine": ENGINE, "curators": ["verified"], **settings}, "prototype")
    ledger, said = Ledger(folder / "ledger.sqlite"), []
    progress = Progress(quiet=True)
    monkeypatch.setattr(progress, "note", said.append)
    monkeypatch.setattr(stage, "open_engine", lambda settings: engine)
    monkeypatch.setattr(estimate_module, "_counter", lambda engine: tokens)
    stage.run(chosen, Run(folder, Recipe("x", task.folder, folder, 7), task, ledger, progress), folder)
    return chosen, ledger, said


def whole(rows: list[Estimate]) -> Estimate:
    return estimate_module._sum(rows)


def dollars(ledger: Ledger) -> float:
    return sum(bill.dollars for bill in ledger.bills())


@pytest.mark.parametrize(
    "steps", [["retrieve", "fill"], ["retrieve", "route", "fill"], ["fill", {"method": "vote", "samples": 2}]]
)
def test_before_anything_is_spent_it_is_within_15_percent(
    steps: list[Any], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = validated(Settings, {"engine": ENGINE, "steps": steps}, "prototype")
    before = whole(estimates(settings, task, count=tokens))
    _, ledger, _ = run_stage(task, CountingEngine(), tmp_path, monkeypatch, steps=steps)
    bills = ledger.bills()
    assert sum(bill.calls for bill in bills) >= 300
    assert before.calls == sum(bill.calls for bill in bills)
    for kind, name in SPENT.items():
        assert getattr(before, name) == pytest.approx(sum(getattr(bill, name) for bill in bills), rel=0.15), kind
    assert before.dollars == pytest.approx(dollars(ledger), rel=0.15)


def test_checks_that_are_needed_now_and_then_are_learned_from_the_first_calls(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that takes 25 tokens a turn, a twentieth of the answers handed back: the ledger of valid tells."""
    steps = ["retrieve", "fill", "check"]
    engine = CountingEngine(turn=25, begin=9, wrong=20)
    settings, ledger, said = run_stage(task, engine, tmp_path, monkeypatch, steps=steps)
    spent = dollars(ledger)
    assert spent != pytest.approx(whole(estimates(settings, task, count=tokens)).dollars, rel=0.15)
    (line,) = [line for line in said if "calls so far the stage takes" in line]
    told = float(line.rpartition("min, $")[2].partition(";")[0])
    assert told == pytest.approx(spent, rel=0.15)
    again = whole(estimates(settings, task, None, ledger, tokens))
    assert again.dollars == pytest.approx(spent, rel=0.05)
    assert again.calls == pytest.approx(sum(bill.calls for bill in ledger.bills()), rel=0.02)


def test_calls_of_other_steps_do_not_tell_how_many_there_are(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ledger, _ = run_stage(task, CountingEngine(), tmp_path, monkeypatch, steps=["retrieve", "fill"])
    other = validated(Settings, {"engine": ENGINE, "steps": ["fill", "vote"]}, "prototype")
    parts = {row.part: row for row in estimates(other, task, None, ledger, tokens)}
    assert parts["labelling the pool"].calls == 320 * 3


def test_after_a_step_is_appended_only_tokens_and_seconds_are_learned(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step's prompts stay what they were; how often the others ask is not in the ledger."""
    steps: list[Any] = ["retrieve", "fill"]
    _, ledger, _ = run_stage(task, CountingEngine(turn=25), tmp_path / "a", monkeypatch, steps=steps)
    steps += [{"method": "vote", "samples": 2}]
    longer = validated(Settings, {"engine": ENGINE, "steps": steps}, "prototype")
    before = {row.part: row for row in estimates(longer, task, None, ledger, tokens)}
    _, other, _ = run_stage(task, CountingEngine(turn=25), tmp_path / "b", monkeypatch, steps=steps)
    (spent,) = [bill for bill in other.bills() if bill.purpose == "pipeline on the pool"]
    assert before["labelling the pool"].calls == spent.calls == 320 * 3
    assert before["labelling the pool"].dollars == pytest.approx(spent.dollars, rel=0.15)
    again = {row.part: row for row in estimates(longer, task, None, other, tokens)}
    assert again["labelling the pool"].calls == spent.calls


def test_an_embedding_is_one_call_of_its_text_at_the_embedders_price(task: Task) -> None:
    def on_pool(retrieve: Any) -> Estimate:
        settings = validated(Settings, {"engine": ENGINE, "steps": [retrieve, "fill"]}, "prototype")
        return estimates(settings, task, count=tokens)[2]

    embedder = {"model": "m", "base_url": "http://localhost:1/v1", "dollars_per_million_in": 2.0}
    alone, more = on_pool("retrieve"), on_pool({"method": "retrieve", "embedder": embedder})
    words = sum(tokens(row.request.text) for row in task.unlabelled)
    assert more.calls == alone.calls + 320
    assert more.tokens_in - alone.tokens_in == pytest.approx(words, rel=0.05)
    assert more.dollars - alone.dollars == pytest.approx(words * 2e-6, rel=0.05)


def test_a_score_reads_its_prompt_too_and_a_server_writes_a_token(task: Task) -> None:
    rehearsal = _Rehearsal(tokens, build("formats", "compact"), {})
    prompt = Prompt(({"role": "system", "content": "s" * 300}, {"role": "user", "content": "u" * 30}), shared=1)
    rehearsal.score([prompt] * 3, ["abc", "abcdef", "abcdefghi"], 0)
    whole = 100 + 10 + 2 * 5 + 3
    assert rehearsal.taken(1) == StepCalls(3.0, whole + 2, (10 + 5 + 3) / 3 + 2, 1.0, None, scored=True)
    hosted = estimate_module._part("x", [StepCalls(3.0, 125.0, 8.0, 1.0, scored=True)], 10, None, PRICE)
    assert hosted.dollars == pytest.approx((30 * 125 * 10 + 30 * 40) / 1e6)
    assert estimate_module._part("x", [StepCalls(3.0, 125.0, 8.0, 1.0, scored=True)], 10, None, Price()).tokens_out == 0


def test_what_lost_tries_may_have_cost_is_said(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, ledger, _ = run_stage(task, CountingEngine(), tmp_path, monkeypatch, steps=["fill"])
    ledger.change(ledger.lose("pipeline on valid", "x", 2, 0.125, 10))
    said: list[str] = []
    progress = Progress(quiet=True)
    monkeypatch.setattr(progress, "note", said.append)
    say_corrected(settings, Run(tmp_path, Recipe("x", task.folder, tmp_path, 7), task, ledger, progress))
    assert said[0].endswith("of it is spent, and at most $0.2500 more on tries without an answer")


def test_another_models_calls_tell_nothing(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, ledger, _ = run_stage(task, CountingEngine(turn=50), tmp_path, monkeypatch, steps=["fill"])
    other = replace(settings, engine={**ENGINE, "model": "other-model"})
    assert estimates(other, task, None, ledger, tokens) == estimates(other, task, None, None, tokens)


def test_a_step_with_an_engine_of_its_own_opens_none_and_is_priced_by_it(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supertiny.prototype.bench.open_block", lambda block: pytest.fail("an engine was opened"))

    def on_pool(steps: list[Any]) -> Estimate:
        settings = validated(Settings, {"engine": ENGINE, "steps": steps}, "prototype")
        return estimates(settings, task, count=tokens)[2]

    def in_cascade(dollars: float) -> Estimate:
        cheap = {**ENGINE, "model": "cheap", "dollars_per_million_in": dollars, "dollars_per_million_out": dollars}
        return on_pool([{"method": "cascade", "engine": cheap, "steps": ["fill"]}])

    alone, free, dear = on_pool(["fill"]), in_cascade(0.0), in_cascade(100.0)
    # The cheap model is asked for every row, the other one for three of ten.
    assert free.calls == dear.calls == pytest.approx(1.3 * alone.calls)
    assert free.dollars == pytest.approx(0.3 * alone.dollars, rel=0.01)
    assert dear.dollars - free.dollars == pytest.approx(100e-6 * (dear.tokens_in + dear.tokens_out) / 1.3, rel=0.01)


def test_curators_that_ask_a_model_are_named(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    progress = Progress(quiet=True)
    monkeypatch.setattr(progress, "note", said.append)
    settings = validated(
        Settings, {"engine": ENGINE, "steps": ["fill"], "curators": ["verified", "perplexity_band"]}, "prototype"
    )
    estimate(settings, task, progress)
    assert said[-1].endswith("not in it: what the curators perplexity_band ask a model")


def test_what_is_said_comes_from_the_ledger_where_there_is_one(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, ledger, _ = run_stage(task, CountingEngine(turn=30), tmp_path, monkeypatch, steps=["fill"])
    ledger.close()
    said: list[str] = []
    progress = Progress(quiet=True)
    note: Callable[[str], None] = said.append
    monkeypatch.setattr(progress, "note", note)
    estimate(settings, task, progress, {"pipeline": 5}, tmp_path / "ledger.sqlite")
    corrected, said[:] = said[-1], []
    assert "as measured" in corrected
    estimate(settings, task, progress, {"pipeline": 5}, tmp_path / "none.sqlite")
    assert "on two cores" in said[-1]
    assert not (tmp_path / "none.sqlite").exists()
    assert float(corrected.rpartition("$")[2]) > 1.1 * float(said[-1].rpartition("$")[2])
