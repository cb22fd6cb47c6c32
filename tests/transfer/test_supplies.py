"""What learners are handed beside lessons: rules to be judged by, a live teacher, or stored scores of any engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from supertiny.core.errors import UserError
from supertiny.core.files import read_json, write_rows
from supertiny.core.ledger import Ledger
from supertiny.core.methods import validated
from supertiny.core.progress import Progress
from supertiny.core.recipe import Recipe
from supertiny.core.run import Run
from supertiny.training.pupil import Pupil
from supertiny.training.scores import Scores
from supertiny.transfer import stage
from supertiny.transfer.settings import Settings
from tests.small_task import examples, small_task
from tests.tiny_student import write_student

IMITATE = {"method": "imitate", "rows": 2, "passes": 2, "learning_rate": 3e-3}
TASK = small_task(labelled=examples("labelled", 4), valid=examples("valid", 2))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("teacher"), seed=5)


def settings(base: Path, **more: Any) -> Settings:
    chosen = {"student": str(base), "learners": [IMITATE], "labelled_only": [], "precision": "float32"}
    made: Settings = validated(Settings, {**chosen, "evaluations": 2, **more}, "transfer")
    return made


def taught(folder: Path, chosen: Settings, progress: Progress | None = None) -> dict[str, Any]:
    rows = [row.to_json() for row in examples("labelled", 4)]
    pool = [row.to_json() for row in examples("unlabelled", 4)]
    said = {"rejected": {"by": "leak_guard", "reason": "similarity 0.95 to row test-1"}}
    write_rows(folder / "prototype" / "rejected.jsonl", [{**pool[3], "provenance": said}])
    write_rows(folder / "prototype" / "train.jsonl", rows)
    write_rows(folder / "prototype" / "pool.jsonl", [rows[0], *pool])
    ledger, told = Ledger(folder / "ledger.sqlite"), progress or Progress(quiet=True)
    run = Run(folder, Recipe("x", Path("task"), folder, seed=7), TASK, ledger, told)
    work = folder / ".transfer"
    work.mkdir(exist_ok=True)
    return stage.run(chosen, run, work)


def test_rows_of_the_pool_that_were_not_kept_are_requests_without_an_answer(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    known = stage.Course

    def course(*arguments: Any) -> Any:
        seen.append(arguments)
        return known(*arguments)

    monkeypatch.setattr(stage, "Course", course)
    learner = {"method": "reject", "rows": 2, "passes": 1, "samples": 2}
    summary = taught(tmp_path, settings(base, learners=[IMITATE, learner], max_tokens=8))
    (unanswered,) = [arguments[5] for arguments in seen if len(arguments) > 5]
    assert [row.request.id for row in unanswered] == ["unlabelled-0", "unlabelled-1", "unlabelled-2"]
    assert all(row.answer is None for row in unanswered)
    learned = summary["student"]["learners"]
    assert [row["learner"] for row in learned] == ["imitate", "reject"]
    assert learned[1]["before"] == learned[0]["valid_exact"] == learned[1]["measured"]["0"]


def test_a_learner_that_only_harms_buys_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [0.5, 0.5, 0.1, 0.2]
    monkeypatch.setattr(stage.Course, "_examine", lambda course, pupil: told.pop(0))
    summary = taught(tmp_path, settings(base, learners=[IMITATE, IMITATE]))
    first, second = summary["student"]["learners"]
    assert (first["valid_exact"], second["before"], second["valid_exact"]) == (0.5, 0.5, 0.5)
    assert second["measured"]["0"] == 0.5
    alone = taught(tmp_path / "alone", settings(base)) if told.extend([0.5, 0.5]) is None else {}
    assert alone
    weights = "model.safetensors"
    once, twice = (folder / ".transfer" / "student" / weights for folder in (tmp_path / "alone", tmp_path))
    assert once.read_bytes() == twice.read_bytes()


def test_the_student_is_measured_as_it_is_saved(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged and rounded: a change that bfloat16 does not hold buys nothing."""
    seen: list[Any] = []

    def examine(course: Any, pupil: Any) -> float:
        seen.append({name: weight.clone() for name, weight in pupil.model.named_parameters()})
        return 1.0

    monkeypatch.setattr(stage.Course, "_examine", examine)
    taught(tmp_path, settings(base, adapter={"method": "lora", "rank": 4}, evaluations=1))
    saved = Pupil.open(tmp_path / ".transfer" / "student", "float32").model
    assert all(weight.equal(seen[-1][name]) for name, weight in saved.named_parameters())
    assert seen[-1].keys() == dict(saved.named_parameters()).keys()


def test_a_live_teacher_is_opened_for_who_needs_one(base: Path, teacher: Path, tmp_path: Path) -> None:
    learner = {"method": "distil", "rows": 2, "passes": 1}
    summary = taught(tmp_path, settings(base, learners=[learner], teacher=str(teacher)))
    assert summary["student"]["learners"][0]["learner"] == "distil"
    with pytest.raises(UserError, match=r"transfer\.learners\.0: needs live_teacher or token_scores") as told:
        settings(base, learners=[learner])
    assert "`teacher`" in told.value.hint
    online = {"method": "distil_online", "rows": 2}
    with pytest.raises(UserError, match=r"transfer\.learners\.0: needs live_teacher"):
        settings(base, learners=[online], teacher={"method": "torch", "model": str(teacher)})


def test_an_engines_scores_are_asked_for_once(
    base: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from supertiny.engines._torch_engine import TorchEngine

    asked: list[int] = []
    score = TorchEngine.score

    def counted(engine: Any, prompts: Any, continuations: Any, top: int = 1) -> Any:
        asked.append(len(prompts))
        assert all("\n\n" in prompt.text for prompt in prompts), "the nearest labelled rows stand before the request"
        return score(engine, prompts, continuations, top)

    monkeypatch.setattr(TorchEngine, "score", counted)
    learner = {"method": "distil", "rows": 2, "passes": 1}
    block = {"method": "torch", "model": str(teacher), "precision": "float32"}
    chosen = settings(base, learners=[learner, learner], teacher=block, top_k=8)
    summary = taught(tmp_path, chosen)
    assert [row["learner"] for row in summary["student"]["learners"]] == ["distil", "distil"]
    assert sum(asked) == 4
    left = {path.name for path in (tmp_path / ".transfer").iterdir()}
    assert left == {"student", "labelled_only", "history.jsonl"}


def test_a_teacher_that_was_stopped_goes_on_from_the_last_part(
    base: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from supertiny.engines._torch_engine import TorchEngine

    asked: list[str] = []
    score, of_engine = TorchEngine.score, Scores.of_engine
    calls_left = [1]

    def stopped(engine: Any, prompts: Any, continuations: Any, top: int = 1) -> Any:
        if not calls_left[0]:
            raise KeyboardInterrupt
        calls_left[0] -= 1
        asked.extend(prompt.text + text for prompt, text in zip(prompts, continuations, strict=True))
        return score(engine, prompts, continuations, top)

    made: list[Scores] = []

    def few_at_once(engine: Any, rows: Any, own: Any, its: Any, top: int, prompts: Any, kept: Path) -> Scores:
        made.append(of_engine(engine, rows, own, its, top, prompts, at_once=3, kept=kept))
        return made[-1]

    monkeypatch.setattr(TorchEngine, "score", stopped)
    monkeypatch.setattr(Scores, "of_engine", few_at_once)
    block = {"method": "torch", "model": str(teacher), "precision": "float32"}
    learner = {"method": "distil", "rows": 2, "passes": 1}
    chosen = settings(base, learners=[learner], teacher=block, top_k=8)
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path, chosen)
    (part,) = (tmp_path / ".transfer").glob(".teacher-*")
    assert part.name.endswith("-part-0.safetensors")
    calls_left[0] = 9
    taught(tmp_path, chosen)
    assert len(asked) == len(set(asked)) == 4, "no lesson is asked again"
    calls_left[0] = 9
    taught(tmp_path / "whole", chosen)
    for name in ("ids", "logprobs", "offsets", "span_ends", "span_logprobs", "span_offsets"):
        assert torch.equal(getattr(made[0], name), getattr(made[1], name))
    assert not list((tmp_path / ".transfer").glob(".teacher-*"))


class Told(Progress):
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.totals: list[float] = []
        self.done: list[float] = []

    @contextmanager
    def task(self, title: str, total: float, unit: str = "") -> Iterator[Any]:
        self.totals.append(total)
        self.done.append(0)

        def advance(count: float) -> None:
            self.done[-1] += count

        yield advance


@pytest.mark.parametrize("method", ["imitate", "reject", "reinforce", "hybrid"])
def test_as_many_steps_are_told_as_are_taken(
    method: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests without an answer are asked by `reject` alone, rows without one by nobody."""
    more: dict[str, Any] = {
        "reject": {"samples": 2},
        "reinforce": {"samples": 2, "least_signal": 0.0},
        "hybrid": {"samples": 2},
    }
    monkeypatch.setattr(stage.Course, "_examine", lambda course, pupil: 0.5)
    block = {"method": method, "rows": 2, "passes": 1, **more.get(method, {})}
    progress = Told()
    taught(tmp_path, settings(base, learners=[block], max_tokens=4), progress)
    assert progress.totals == progress.done == [4 if method == "reject" else 2]


def test_an_adapter_learns_and_is_merged_into_a_stock_student(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    taught(tmp_path, settings(base, adapter={"method": "lora", "rank": 4}))
    student = tmp_path / ".transfer" / "student"
    model = AutoModelForCausalLM.from_pretrained(student)
    assert type(model).__name__ == read_json(student / "config.json")["architectures"][0] == "LlamaForCausalLM"
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    after = model.state_dict()
    moved = {name for name in after if not before[name].bfloat16().equal(after[name].bfloat16())}
    assert moved
    assert not any("norm" in name or "embed" in name for name in moved)


def test_rounding_while_teaching_needs_all_weights(base: Path) -> None:
    with pytest.raises(UserError, match="adapter lora trains others"):
        settings(base, adapter="lora", quantization_aware="q4_0")
