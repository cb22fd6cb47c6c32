"""Curators within the stage: who is handed what, what is said of dropped rows, what is paid, when a run is redone."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.files import read_rows, write_rows
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.methods import own_methods, validated
from supertiny.core.progress import Progress
from supertiny.core.recipe import STAGES, Recipe
from supertiny.core.records import Completion, Example, Grammar, Price, Prompt, Sampling
from supertiny.core.run import Run
from supertiny.core.task import STEPS, Task, load_task
from supertiny.pipeline import _read_beside, _settings
from supertiny.prototype import bench, stage
from supertiny.prototype.estimate import estimates
from supertiny.prototype.settings import Settings
from tests.fake_engine import FakeEngine
from tests.small_bench import ScoringEngine, labels, writes_requests
from tests.small_task import PHRASES, rows, write_task

GOLD = {row["text"]: row["calls"][0] for split in PHRASES for row in rows(split)}
NO_CALL = rows("unlabelled")[0]["text"]
CUT_OFF = rows("unlabelled")[1]["text"]

TORN = '''"""Splits the votes on kitchens.

Use when: a test asks a person.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Torn:
    """It asks nobody."""

    calls_per_request = 0.0

    def run(self, traces, bench):
        return [replace(trace, confidence=0.4 if "kitchen" in trace.request.text else 1.0) for trace in traces]
'''


class Teacher(FakeEngine):
    """Right but for one row of the pool and one that it cuts off; asked again, it is right there too."""

    def __init__(self) -> None:
        super().__init__(self.write, Price(dollars_per_million_in=1.0), "teacher")
        self.is_open = True

    def write(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
        assert self.is_open
        if "You write what users say" in prompt.messages[0]["content"]:
            return writes_requests(prompt, sampling, grammar)
        if "JSON list" in prompt.messages[0]["content"]:
            return "[]"
        again = "That is wrong" in prompt.messages[-1]["content"]
        text = prompt.messages[-3 if again else -1]["content"]
        if text == NO_CALL:
            return "~"
        call = GOLD.get(text)
        if call is None:
            made = labels([Example.from_json({"text": text}).request])[0].calls
            call = made[0].to_json() if made else {"name": "TurnOn", "arguments": {"area": "Hall"}}
        return f"{call['name']} " + "; ".join(f"{name} {value}" for name, value in sorted(call["arguments"].items()))

    def _write(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> Completion:
        written = super()._write(prompt, sampling, grammar)
        return replace(written, finish="length") if prompt.messages[-1]["content"] == CUT_OFF else written

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(write_task(tmp_path / "task"))


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Teacher:
    opened = Teacher()
    monkeypatch.setattr(stage, "open_engine", lambda settings: opened)
    return opened


@pytest.fixture
def student(monkeypatch: pytest.MonkeyPatch) -> ScoringEngine:
    """What opens in place of the student's model."""
    opened = ScoringEngine()
    monkeypatch.setattr(bench, "open_block", lambda *_: opened)
    return opened


def run_of(task: Task, budget: Budget | None = None) -> Run:
    folder = task.folder.parent / "run"
    ledger = Ledger(folder / "ledger.sqlite", budget)
    return Run(folder, Recipe("x", task.folder, folder, 7), task, ledger, Progress(quiet=True))


def run_stage(task: Task, budget: Budget | None = None, **settings: Any) -> tuple[dict[str, Any], Path]:
    run = run_of(task, budget)
    folder = run.folder / "prototype"
    folder.mkdir(parents=True, exist_ok=True)
    block = {"engine": "openvino", "steps": ["retrieve", "fill"], **settings}
    chosen = validated(Settings, block, "prototype", own_methods("steps", task.folder / STEPS))
    try:
        return stage.run(chosen, run, folder), folder
    finally:
        run.ledger.close()


def test_every_row_that_is_dropped_is_told_with_who_and_why(task: Task, teacher: Teacher) -> None:
    block = {"method": "verified", "keep_abstained": False}
    summary, folder = run_stage(task, curators=[block, "deduplicate", {"method": "balance", "rows": 27}])
    rejected = {
        row["messages"][0]["content"]: row["provenance"]["rejected"] for row in read_rows(folder / "rejected.jsonl")
    }
    assert rejected[CUT_OFF] == {"by": "pipeline", "reason": "unreadable answer"}
    assert rejected[NO_CALL]["by"] == "verified"
    assert rejected[NO_CALL]["reason"].startswith("the verifier abstains: no call")
    by = Counter(one["by"] for one in rejected.values())
    assert set(by) == {"pipeline", "verified", "balance"}
    train = {row["id"] for row in read_rows(folder / "train.jsonl")}
    whole = {row["id"] for row in read_rows(folder / "pool.jsonl")} | {row.request.id for row in task.labelled}
    assert len(train) + len(rejected) == len(whole)
    assert all("of its" in one["reason"] for one in rejected.values() if one["by"] == "balance")
    counts = {one["curator"]: one for one in summary["curators"]}
    assert list(counts) == ["verified", "deduplicate", "balance"]
    assert counts["verified"] == {
        "curator": "verified",
        "before": 41,
        "after": 40,
        "dropped": 1,
        "made": 0,
        "changed": 0,
    }
    assert counts["balance"]["after"] == len(train)
    assert counts["balance"]["dropped"] == by["balance"] > 0


def test_the_price_of_each_step_is_told(task: Task, teacher: Teacher) -> None:
    summary, _ = run_stage(task, steps=["retrieve", "fill", "check"], curators=[])
    costs = summary["costs_by_step"]
    fill, check = (costs["pipeline on the pool"][name] for name in ("fill", "check"))
    # The row that was cut off was completed again under the grammar, cut off again, and handed back by the check.
    assert fill["calls"] >= 18
    assert check["calls"] >= 1
    assert costs["pipeline on valid"]["fill"]["calls"] == 18
    assert costs["pipeline on valid"]["check"]["calls"] == 0
    assert fill["cost"]["dollars"] == pytest.approx(fill["cost"]["tokens_in"] / 1e6)
    assert costs["paid once"] == {}


@pytest.mark.parametrize(("curators", "is_open"), [(["verified"], False), (["perplexity_band"], False)])
def test_the_teachers_model_is_freed_before_curators_that_do_not_ask_it(
    task: Task,
    teacher: Teacher,
    student: ScoringEngine,
    monkeypatch: pytest.MonkeyPatch,
    curators: list[str],
    is_open: bool,
) -> None:
    seen = []
    lead = stage.curate
    monkeypatch.setattr(stage, "curate", lambda *given: (seen.append(teacher.is_open), lead(*given))[1])
    run_stage(task, curators=curators)
    assert seen == [is_open]
    teacher.is_open = True
    run_stage(task, curators=[*curators, "refine"])
    assert seen == [is_open, True]
    assert not teacher.is_open


def test_scores_are_one_batch_for_all_curators_and_are_kept_in_the_ledger(
    task: Task, teacher: Teacher, student: ScoringEngine
) -> None:
    curators = ["verified", "perplexity_band", {"method": "perplexity_band", "low": 0.2}, "information_sampling"]
    summary, folder = run_stage(task, curators=curators)
    answers, requests = student.scored
    assert len(answers) == 17, "pool rows that can be read"
    assert len(requests) < 17
    assert [one["curator"] for one in summary["curators"]][1:3] == ["perplexity_band", "perplexity_band 2"]
    train = (folder / "train.jsonl").read_bytes()
    teacher.is_open = True
    run_stage(task, curators=curators)
    assert len(student.scored) == 2, "a second run reads them from the ledger"
    assert (folder / "train.jsonl").read_bytes() == train
    run = run_of(task)
    bills = {bill.purpose: bill.calls for bill in run.ledger.bills("curator ")}
    assert bills == {"curator perplexity_band": 17, "curator information_sampling": len(requests)}
    run.ledger.close()


def test_expand_is_labelled_by_the_pipeline_verified_and_billed(task: Task, teacher: Teacher) -> None:
    curators = ["verified", {"method": "expand", "rows": 12, "texts": 4, "rounds": 1}, "leak_guard"]
    summary, folder = run_stage(task, curators=curators)
    made = [row for row in read_rows(folder / "train.jsonl") if row["provenance"]["source"] == "expand"]
    count = next(one for one in summary["curators"] if one["curator"] == "expand")
    assert count["made"] == len(made) == 12
    assert count["calls"] == 3 + 12, "three lists were written, twelve requests answered"
    chosen = validated(
        Settings, {"engine": "openvino", "steps": ["retrieve", "fill"], "curators": curators}, "prototype"
    )
    assert {part.part: part.calls for part in estimates(chosen, task)}["curators"] == pytest.approx(3 + 12)
    assert count["dollars"] == pytest.approx(count["tokens_in"] / 1e6)
    known = {row.request.id for row in (*task.labelled, *task.unlabelled)}
    for row in made:
        assert row["provenance"]["origin"] in known
        assert row["verdict"]["outcome"] == "pass"
        assert row["answer"]["by"] == "pipeline"
        assert row["cost"]["tokens_in"] == 10
    assert not teacher.is_open


def test_refine_gets_answers_that_nobody_could_read_and_the_others_never_do(task: Task, teacher: Teacher) -> None:
    summary, folder = run_stage(task, curators=["refine", "verified"])
    learned = {row["messages"][0]["content"]: row for row in read_rows(folder / "train.jsonl")}
    assert learned[CUT_OFF]["calls"] == [GOLD[CUT_OFF]]
    assert learned[CUT_OFF]["provenance"]["changed_by"] == ["refine"]
    assert summary["curators"][0]["changed"] == 1
    assert summary["kept_right_share"] == pytest.approx(17 / 18), "what was mended counts as it is now"
    teacher.is_open = True
    _, folder = run_stage(task, curators=["verified", "refine"])
    assert CUT_OFF not in {row["messages"][0]["content"] for row in read_rows(folder / "train.jsonl")}


def test_a_budget_stops_curators_too(task: Task, teacher: Teacher, student: ScoringEngine) -> None:
    run_stage(task, curators=[])
    run = run_of(task)
    spent = sum(bill.tokens_in + bill.tokens_out for bill in run.ledger.bills())
    run.ledger.close()
    for curator in ("expand", "perplexity_band"):
        teacher.is_open = True
        with pytest.raises(BudgetReached):
            run_stage(task, Budget(tokens=spent), curators=[curator])
    assert student.scored == []


def test_a_persons_decisions_make_the_stage_be_done_again(task: Task, teacher: Teacher) -> None:
    (task.folder / STEPS).mkdir()
    (task.folder / STEPS / "torn.py").write_text(TORN, encoding="utf-8")
    curators, steps = ["disagreement"], ["retrieve", "fill", "torn"]
    prototype = validated(Settings, {"engine": "openvino", "curators": curators}, "prototype")
    chosen = {**_settings({}, None)[0], "prototype": prototype}
    run = run_of(task)

    def key() -> dict[str, Any]:
        return _read_beside("prototype", chosen, run)

    assert key() == {}
    summary, folder = run_stage(task, curators=curators, steps=steps)
    path = run.folder / "review" / "disagreement.jsonl"
    questions = read_rows(path)
    assert questions
    assert summary["curators"][0]["dropped"] == len(questions)
    assert key() == {}, "what the stage itself wrote is no decision"
    write_rows(path, [{**questions[0], "decision": "accepted"}, *questions[1:]])
    first = key()
    assert first["decided"]["disagreement"]
    teacher.is_open = True
    run_stage(task, curators=curators, steps=steps)
    assert key() == first
    assert questions[0]["id"] in {row["id"] for row in read_rows(folder / "train.jsonl")}
    assert all(_read_beside(other, chosen, run) == {} for other in STAGES if other != "prototype")
    run.ledger.close()


def test_what_is_scrubbed_stands_in_no_file_of_rows(task: Task, teacher: Teacher) -> None:
    """Two rows say the same, so that one of them is left out."""
    secret, said = "anna@firma.de", "please illuminate the hall for anna@firma.de"
    with (task.folder / "unlabelled.jsonl").open("a", encoding="utf-8") as lines:
        lines.write("".join(json.dumps({"text": text}) + "\n" for text in (said, said.upper())))
    with (task.folder / "labelled.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"text": f"dark for {secret}", "calls": [rows("labelled")[0]["calls"][0]]}) + "\n")
    summary, folder = run_stage(load_task(task.folder), curators=["verified", "deduplicate", "scrub"])
    kept, pool, rejected = (read_rows(folder / f"{name}.jsonl") for name in ("train", "pool", "rejected"))
    assert not any(secret in json.dumps(row).casefold() for row in (*kept, *pool, *rejected))
    assert summary["curators"][2]["changed"] == 2
    texts = [{row["messages"][0]["content"] for row in split} for split in (kept, pool, rejected)]
    (instead,) = {text.split()[-1] for split in texts for text in split if "@" in text}
    assert instead.endswith("@example.com")
    assert [f"please illuminate the hall for {instead}" in split for split in texts] == [True, True, False]
    (left_out,) = [row for row in rejected if "@" in row["messages"][0]["content"]]
    assert left_out["provenance"]["rejected"]["by"] == "deduplicate"


def test_nobody_asks_the_teacher_behind_scrub(task: Task, teacher: Teacher) -> None:
    with pytest.raises(UserError, match=r"prototype\.curators\.1: refine asks the teacher"):
        run_stage(task, curators=["scrub", "refine"])
    assert not teacher.asked


def test_rows_are_scrubbed_once_and_it_is_told_that_no_names_are_looked_for(
    task: Task, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is left out behind `scrub` has the same stand-in there as in the pool."""
    notes: list[str] = []
    monkeypatch.setattr(Progress, "note", lambda self, text: notes.append(text))
    said = "please illuminate the hall for anna@firma.de"
    with (task.folder / "unlabelled.jsonl").open("a", encoding="utf-8") as lines:
        lines.write("".join(json.dumps({"text": text}) + "\n" for text in (said, said.upper())))
    _, folder = run_stage(load_task(task.folder), curators=["verified", "scrub", "deduplicate"])
    pool, rejected = (
        {row["messages"][0]["content"] for row in read_rows(folder / f"{name}.jsonl")} for name in ("pool", "rejected")
    )
    (left_out,) = (text for text in rejected if "@" in text)
    assert left_out in pool
    assert any("scrub replaces no names" in note for note in notes)
    notes.clear()
    teacher.is_open = True
    run_stage(load_task(task.folder), curators=[{"method": "scrub", "names": ["Anna"]}])
    assert not any("no names" in note for note in notes)


def test_two_persons_files_do_not_meet(task: Task, teacher: Teacher) -> None:
    (task.folder / STEPS).mkdir()
    (task.folder / STEPS / "torn.py").write_text(TORN, encoding="utf-8")
    steps, block = ["retrieve", "fill", "torn"], {"method": "verified", "least_confidence": 0.0}
    _, folder = run_stage(task, curators=[{"method": "disagreement", "least_confidence": 0.5}, block], steps=steps)
    review = folder.parent / "review"
    questions = read_rows(review / "disagreement.jsonl")
    teacher.is_open = True
    curators = [{"method": "disagreement", "least_confidence": 0.5}, block, "disagreement"]
    run_stage(task, curators=curators, steps=steps)
    assert read_rows(review / "disagreement.jsonl") == questions, "the second one has nothing to say of these"
    teacher.is_open = True
    curators = [{"method": "disagreement", "least_confidence": 0.1}, block, "disagreement"]
    run_stage(task, curators=curators, steps=steps)
    assert read_rows(review / "disagreement.jsonl") == []
    assert [row["id"] for row in read_rows(review / "disagreement-2.jsonl")] == [row["id"] for row in questions]
    write_rows(review / "disagreement-2.jsonl", [{**row, "decision": "accepted"} for row in questions])
    chosen = {"prototype": validated(Settings, {"engine": "openvino", "curators": curators}, "prototype")}
    run = run_of(task)
    assert set(_read_beside("prototype", chosen, run)["decided"]) == {"disagreement 2"}
    run.ledger.close()
