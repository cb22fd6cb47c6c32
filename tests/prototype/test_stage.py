"""The prototype stage with an engine that needs no model: what is measured, labelled, kept and paid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.files import read_rows
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.methods import build, validated
from supertiny.core.progress import Progress
from supertiny.core.recipe import Recipe
from supertiny.core.records import Answer, Call, Completion, Example, Grammar, Price, Prompt, Sampling, Tool, Verdict
from supertiny.core.run import Run
from supertiny.core.scoring import exact
from supertiny.core.task import Task, load_task
from supertiny.pipeline import _asked_on_test
from supertiny.prototype import curating, stage, teacher
from supertiny.prototype.estimate import estimate, estimates
from supertiny.prototype.settings import Settings
from supertiny.prototype.teacher import open_engine, pipeline_of, plain_of
from supertiny.report.settings import Settings as ReportSettings
from tests.fake_engine import FakeEngine
from tests.local_server import served
from tests.small_task import PHRASES, rows, write_task

GOLD = {row["text"]: row["calls"][0] for split in PHRASES for row in rows(split)}
WRONG = {row["text"] for row in rows("unlabelled")[:3]}


def author(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """Right in the compact format, but for three rows of the pool; the plain prompt gets no call."""
    if "JSON list" in prompt.messages[0]["content"]:
        return "[]"
    text = prompt.messages[-1]["content"]
    call = GOLD[text]
    arguments = {**call["arguments"], **({"area": "Attic"} if text in WRONG else {})}
    return f"{call['name']} " + "; ".join(f"{name} {value}" for name, value in sorted(arguments.items()))


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(write_task(tmp_path / "task"))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    opened = FakeEngine(author)
    monkeypatch.setattr(stage, "open_engine", lambda settings: opened)
    return opened


def run_stage(task: Task, budget: Budget | None = None, **settings: Any) -> tuple[dict[str, Any], Path, Ledger]:
    folder = task.folder.parent / "run" / "prototype"
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder.parent / "ledger.sqlite", budget)
    run = Run(folder.parent, Recipe("x", task.folder, folder.parent, 7), task, ledger, Progress(quiet=True))
    chosen = validated(Settings, {"engine": "openvino", "steps": ["retrieve", "fill"], **settings}, "prototype")
    return stage.run(chosen, run, folder), folder, ledger


def read(path: Path) -> list[Example]:
    return [Example.from_json(row) for row in read_rows(path)]


def test_values_are_compared_by_the_functions_that_a_request_brings(task: Task) -> None:
    own = Tool("Pay", "", {"type": "object", "properties": {"sum": {"type": "number"}}})
    request = replace(task.valid[0].request, id="own", tools=(own,))
    gold = Example(request, Answer((Call("Pay", {"sum": 5}),)))
    said = Answer((Call("Pay", {"sum": "5"}),))
    ledger = Ledger(task.folder / "ledger.sqlite")
    known = replace(task, pool_gold={"own": (Call("Pay", {"sum": 5}),)})
    run = Run(task.folder, Recipe("x", task.folder, task.folder, 7), known, ledger, Progress(quiet=True))
    assert stage._share(run, [gold], [said])[0] == 1.0
    labelled = replace(gold, answer=said)
    summary = stage._pool_summary(run, [labelled], [labelled])
    assert (summary["pool_right_share"], summary["kept_right_share"]) == (1.0, 1.0)
    ledger.close()


def test_what_is_measured_labelled_and_kept(task: Task, engine: FakeEngine) -> None:
    summary, folder, ledger = run_stage(task, plain_rows=4)
    pool, train = read(folder / "pool.jsonl"), read(folder / "train.jsonl")
    assert [row.request for row in pool] == [row.request for row in task.unlabelled]
    for row in pool:
        assert row.answer is not None
        assert row.verdict is not None
        assert row.provenance["source"] == "pool"
        right = exact(row.answer.calls, task.pool_gold[row.request.id], task.tool_map)
        assert right == (row.request.text not in WRONG or "attic" in row.request.text)
        assert row.answer.cost.tokens_in >= 10
    labelled = [row for row in train if row.provenance["source"] == "labelled"]
    assert [row.request.id for row in labelled] == [row.request.id for row in task.labelled]
    assert summary["pool_rows"] == 18
    assert summary["pool_right_share"] == pytest.approx(15 / 18)
    assert summary["train_rows"] == len(train) == 24 + summary["pool_kept"]
    assert summary["valid_pipeline"][0] == 1.0
    assert summary["valid_plain_prompt"][0] == 0.0
    assert (summary["valid_pipeline"][3], summary["valid_plain_prompt"][3]) == (18, 4)
    measured = read_rows(folder / "valid.jsonl")
    assert [row["pipeline"] for row in measured] == [row["calls"] for row in measured]
    assert [row.get("plain_prompt") for row in measured] == [[]] * 4 + [None] * 14
    asked = {bill.purpose: bill.calls for bill in ledger.bills()}
    assert asked == {"plain prompt on valid": 4, "pipeline on valid": 18, "pipeline on the pool": 18}


def test_the_model_sees_neither_the_answers_of_the_pool_nor_valid_nor_test(task: Task, engine: FakeEngine) -> None:
    run_stage(task)
    shown = {m["content"] for prompt, *_ in engine.asked for m in prompt.messages[1:-1]}
    labelled = {row.request.text for row in task.labelled}
    assert {text for text in shown if text in GOLD} <= labelled
    assert {prompt.messages[-1]["content"] for prompt, *_ in engine.asked} == {
        row.request.text for row in (*task.unlabelled, *task.valid)
    }


def test_run_again_it_asks_nothing_and_writes_the_same(task: Task, engine: FakeEngine) -> None:
    _, folder, ledger = run_stage(task)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    asked = len(engine.asked)
    ledger.close()
    _, folder, _ = run_stage(task)
    assert len(engine.asked) == asked
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_rows_can_be_limited(task: Task, engine: FakeEngine) -> None:
    summary, folder, _ = run_stage(task, pool_rows=5, valid_rows=3, plain_rows=2, chunk=2)
    assert summary["pool_rows"] == len(read_rows(folder / "pool.jsonl")) == 5
    assert len(read_rows(folder / "valid.jsonl")) == 3
    assert max(engine.batches) <= 2 or engine.batches[0] == 2


def test_a_budget_that_is_reached_stops_the_stage_and_nothing_paid_is_lost(task: Task, engine: FakeEngine) -> None:
    engine.tokens_in = 500
    with pytest.raises(BudgetReached, match="20000 tokens"):
        run_stage(task, Budget(tokens=20_000))
    assert 30 <= len(engine.asked) <= 39
    run_stage(task)
    assert len(engine.asked) == 18 + 18 + 18, "each call is made once"


def test_curators_that_leave_nothing_are_told(task: Task, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def curate(self, *_: Any) -> list[Example]:
            return []

    known = curating.build
    monkeypatch.setattr(
        curating, "build", lambda family, *rest: Nothing() if family == "curators" else known(family, *rest)
    )
    with pytest.raises(UserError, match="no example is left") as told:
        run_stage(task)
    assert "pool.jsonl" in told.value.hint


def test_the_teacher_measured_without_the_ledger_computes_every_call(task: Task, engine: FakeEngine) -> None:
    folder = task.folder.parent / "run"
    run = Run(folder, Recipe("x", task.folder, folder, 7), task, Ledger(folder / "l.sqlite"), Progress(quiet=True))
    settings = validated(Settings, {"steps": ["fill", "check"]}, "prototype")
    for answerer in (teacher.pipeline_of(settings, run, engine, "a"), teacher.plain_of(settings, run, engine, "b")):
        requests = [row.request for row in task.valid[:3]]
        first = answerer.answer(requests)
        before = len(engine.asked)
        answerer.answer(requests)
        assert len(engine.asked) == before
        again = answerer.without_ledger().answer(requests)
        assert len(engine.asked) == before + 3
        assert [answer.calls for answer in again] == [answer.calls for answer in first]
        assert answerer.without_ledger().answer([]) == []


def test_what_was_cut_off_or_cannot_be_read_is_never_learned(task: Task, engine: FakeEngine) -> None:
    """Unreadable words become no "no call" row, and a call cut at the limit becomes no label, though it decodes."""
    cut, broken = (row.request.text for row in task.unlabelled[4:6])

    def write(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> Completion:
        text = prompt.messages[-1]["content"]
        written = FakeEngine._write(engine, prompt, sampling, grammar)
        if text == cut:
            return replace(written, finish="length")
        return replace(written, text="TurnOn area") if text == broken else written

    engine._write = write  # type: ignore[method-assign]
    for number, curators in enumerate((["verified"], [])):
        _, folder, ledger = run_stage(task, curators=curators)
        rows = {row.request.text: row for row in read(folder / "pool.jsonl")}
        for text in (cut, broken):
            answer, verdict = rows[text].answer, rows[text].verdict
            assert answer is not None
            assert (answer.calls, answer.readable) == ((), False)
            assert answer.raw
            assert verdict == Verdict("fail", 0.0, "unreadable answer")
        learned = {row.request.text for row in read(folder / "train.jsonl")}
        assert not learned & {cut, broken}
        assert number or learned & {row.request.text for row in task.unlabelled}
        ledger.close()


@pytest.mark.parametrize("kind", ["pipeline_of", "plain_of"])
def test_latency_of_a_teacher_with_a_price_is_billed_and_kept_in_budget(task: Task, kind: str) -> None:
    hosted = FakeEngine(author, Price(dollars_per_million_in=1.0))
    folder = task.folder.parent / "run"
    ledger = Ledger(folder / "l.sqlite")
    run = Run(folder, Recipe("x", task.folder, folder, 7), task, ledger, Progress(quiet=True))
    settings = validated(Settings, {"steps": ["fill"]}, "prototype")
    answerer = getattr(teacher, kind)(settings, run, hosted, "on test")
    requests = [row.request for row in task.valid[:2]]
    first = answerer.answer(requests)
    computing = answerer.without_ledger()
    for _ in range(2):
        assert [answer.calls for answer in computing.answer(requests)] == [answer.calls for answer in first]
    assert len(hosted.asked) == 6, "every call is computed"
    bills = {bill.purpose: (bill.calls, bill.tokens_in) for bill in ledger.bills()}
    assert bills == {"on test": (2, 20), "latency on test": (4, 40)}
    ledger.budget = Budget(tokens=100)
    with pytest.raises(BudgetReached):
        computing.answer(requests)
    assert len(hosted.asked) == 6


def test_an_estimate_counts_what_the_report_asks(task: Task) -> None:
    settings = validated(Settings, {"steps": ["fill"]}, "prototype")
    parts = {row.part: row.calls for row in estimates(settings, task, {"pipeline": 9, "plain_prompt": 7})}
    assert (parts["pipeline on test"], parts["plain prompt on test"]) == (9, 7)
    assert (parts["pipeline on valid"], parts["labelling the pool"]) == (18, 18)
    pair = estimates(settings, task, {"pipeline": len(task.valid)})
    by_part = {row.part: row for row in pair}
    assert by_part["pipeline on test"].tokens_in == by_part["pipeline on valid"].tokens_in > 0
    assert by_part["plain prompt on test"].tokens_fresh == 0


def test_the_whole_estimate_takes_the_reports_settings(task: Task) -> None:
    every = validated(ReportSettings, {"test_rows": 5, "latency_requests": 3, "warm_up_requests": 1}, "report")
    assert _asked_on_test(every, task) == {"plain_prompt": 9, "pipeline": 9}
    few = validated(ReportSettings, {"answerers": ["student", "pipeline"], "latency_requests": 2}, "report")
    assert _asked_on_test(few, task) == {"pipeline": len(task.test) + 4}


@pytest.mark.parametrize("name", ["compact", "chat_json"])
def test_the_teacher_is_told_the_rules_of_its_own_format(task: Task, name: str) -> None:
    form = build("formats", name)
    engine = FakeEngine(lambda prompt, sampling, grammar: form.write(Answer((Call("Nothing"),))))
    folder = task.folder.parent / "run"
    run = Run(folder, Recipe("x", task.folder, folder, 7), task, Ledger(folder / "l.sqlite"), Progress(quiet=True))
    settings = validated(Settings, {"format": name, "steps": ["fill", "check"]}, "prototype")
    teacher.pipeline_of(settings, run, engine, "a").answer([task.valid[0].request])
    told = [prompt.messages[0]["content"] for prompt, *_ in engine.asked]
    assert all(form.rules in text for text in told)
    assert engine.asked[-1][0].messages[-1]["content"].endswith(f", or {form.write(Answer())}.")


def test_an_estimate_knows_the_price_that_the_recipe_states(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    engine = {"method": "openai", "model": "m", "base_url": "http://10.0.0.4:8000/v1"}

    def last_dollars(**prices: float) -> float:
        settings = validated(Settings, {"steps": ["fill"], "engine": {**engine, **prices}}, "prototype")
        estimate(settings, task, Progress())
        said = capsys.readouterr()
        return float((said.out + said.err).strip().rpartition("$")[2])

    rows = estimates(validated(Settings, {"steps": ["fill"], "engine": engine}, "prototype"), task)
    tokens_in, tokens_out = (sum(getattr(row, name) for row in rows) for name in ("tokens_in", "tokens_out"))
    stated = last_dollars(dollars_per_million_in=1000, dollars_per_million_out=2000)
    assert stated == pytest.approx((tokens_in * 1000 + tokens_out * 2000) / 1e6, rel=0.01)
    assert last_dollars() == 0  # a server of one's own
    unknown = validated(
        Settings, {"engine": {"method": "openai", "model": "nobody-knows", "base_url": "https://x.example/v1"}}, "p"
    )
    with pytest.raises(UserError, match="nobody knows the price"):
        estimate(unknown, task, Progress())


def test_a_teacher_behind_a_server_that_knows_no_grammar_labels_all_the_same(task: Task, tmp_path: Path) -> None:
    def author(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
        said = str(prompt.messages[-1]["content"])
        if "bring" in said:
            return "I would rather not"  # left the format: the same prompt again would cost and bring nothing
        plain = "JSON list" in str(prompt.messages[0]["content"])
        return '[{"name": "TurnOn", "arguments": {"area": "Hall"}}]' if plain else "TurnOn area Hall"

    engine = FakeEngine(author)
    with served(engine) as url:
        wire = {"method": "openai", "model": "small-one", "base_url": url}  # the dialect of a hosted model
        settings = validated(Settings, {"steps": ["route", "fill"], "engine": wire}, "prototype")
        ledger = Ledger(tmp_path / "ledger.sqlite")
        run: Any = SimpleNamespace(ledger=ledger, task=task, seed=7, progress=Progress(quiet=True))
        opened = open_engine(settings)
        requests = [row.request for row in task.valid]
        plain = plain_of(settings, run, opened, "plain").answer(requests)
        answers = pipeline_of(settings, run, opened, "pipeline").answer(requests)
    hall = (Call("TurnOn", {"area": "Hall"}),)
    assert [answer.calls for answer in plain] == [() if "bring" in r.text else hall for r in requests]
    odd = ["bring" in request.text for request in requests]
    assert [answer.calls != hall for answer in answers] == odd
    assert sum(odd) > 0
    assert all(grammar is None for _, _, grammar in engine.asked)
    assert len(engine.asked) == 3 * len(requests)  # plain, route, fill: none twice
