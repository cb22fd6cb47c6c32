"""The transfer stage: two students, stopped early by valid, and whatever it is killed in, the same ones come out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from supertiny.core.errors import UserError
from supertiny.core.files import read_json, read_rows, sha256_of, write_rows
from supertiny.core.ledger import Ledger
from supertiny.core.methods import validated
from supertiny.core.models import catalogue
from supertiny.core.progress import Progress
from supertiny.core.recipe import Recipe
from supertiny.core.run import Run
from supertiny.core.student import Student
from supertiny.engines import _gguf_to_hf, _huggingface
from supertiny.engines._huggingface import huggingface_folder
from supertiny.training.grid import round_q4_0, settle
from supertiny.training.loop import Optimiser, Step
from supertiny.training.pupil import Pupil
from supertiny.transfer import stage, teaching
from supertiny.transfer.settings import Settings
from tests.small_task import examples, small_task
from tests.tiny_student import write_student

LEARNER = {"method": "imitate", "rows": 2, "passes": 2, "learning_rate": 3e-3}
TASK = small_task(labelled=examples("labelled", 4), valid=examples("valid", 2))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("base"))


def settings(base: Path, **more: Any) -> Settings:
    chosen = {"student": str(base), "learners": [LEARNER], "labelled_only": [LEARNER], "precision": "float32"}
    made: Settings = validated(Settings, {**chosen, "checkpoint_steps": 2, "evaluations": 3, **more}, "transfer")
    return made


def open_run(folder: Path, train: int = 6) -> Run:
    write_rows(folder / "prototype" / "train.jsonl", [row.to_json() for row in examples("labelled", train)])
    ledger = Ledger(folder / "ledger.sqlite")
    return Run(folder, Recipe("x", Path("task"), folder, seed=7), TASK, ledger, Progress(quiet=True))


def teach(run: Run, chosen: Settings) -> dict[str, Any]:
    folder = run.folder / ".transfer"
    folder.mkdir(exist_ok=True)
    return stage.run(chosen, run, folder)


def weights(folder: Path) -> dict[str, str]:
    return {name: sha256_of(folder / name / "model.safetensors") for name in ("student", "labelled_only")}


def without_seconds(summary: dict[str, Any]) -> dict[str, Any]:
    learned = [{key: v for key, v in learner.items() if key != "seconds"} for learner in summary["learners"]]
    return {**summary, "learners": learned}


def test_two_students_that_open_in_stock_transformers(base: Path, tmp_path: Path) -> None:
    run = open_run(tmp_path)
    summary = teach(run, settings(base))
    folder = tmp_path / ".transfer"
    assert {path.name for path in folder.iterdir()} == {"student", "labelled_only", "history.jsonl"}
    for name, rows in (("student", 6), ("labelled_only", 4)):
        card = Student.open(folder / name)
        assert (card.format, card.base, card.seed) == ("compact", str(base), 7)
        model = AutoModelForCausalLM.from_pretrained(folder / name)
        assert card.parameters == sum(parameter.numel() for parameter in model.parameters())
        (learned,) = summary[name]["learners"]
        steps = [row for row in read_rows(folder / "history.jsonl") if row["student"] == name]
        assert [row["step"] for row in steps] == list(range(1, rows + 1))
        assert learned["lessons"] == summary[name]["rows"] == rows
        assert learned["tokens"] == sum(row["tokens"] for row in steps) > 0
        assert learned["low"] <= learned["valid_exact"] <= learned["high"]
        assert learned["n"] == 2
        assert list(learned["measured"]) == ([str(s) for s in (2, 4, 6)] if rows == 6 else ["1", "3", "4"])
    assert weights(folder)["student"] != weights(folder)["labelled_only"]


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, Any]]:
    run = open_run(tmp_path_factory.mktemp("whole"))
    summary = teach(run, settings(base))
    return weights(run.folder / ".transfer"), summary


class Kill(BaseException):
    """Nothing catches this, as nothing catches SIGKILL."""


def killed_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, count: int, after: bool) -> None:
    """The process dies at the call of this number, before or after the call has done its work."""
    known: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and not after:
            raise Kill
        result = known(*arguments, **named)
        if calls == count:
            raise Kill
        return result

    monkeypatch.setattr(owner, name, call)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "count"),
    [
        *((teaching, "write_json", count) for count in (1, 3, 4, 5, 8)),
        *((teaching, "_keep", count) for count in (1, 2, 3)),
        *((Pupil, "save", count) for count in (1, 3)),
        *((Optimiser, "save", count) for count in (1, 2, 3)),
        *((Path, "rename", count) for count in (2, 4, 5, 6, 9, 10)),
        *((shutil, "rmtree", count) for count in (1, 5, 8)),
        (Student, "save_card", 1),
        (Student, "save_card", 2),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rpartition(".")[2],
)
def test_killed_and_run_again_the_same_students_come_out(
    owner: Any,
    name: str,
    count: int,
    after: bool,
    base: Path,
    whole: tuple[dict[str, str], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = open_run(tmp_path)
    with monkeypatch.context() as patched:
        killed_at(patched, owner, name, count, after)
        with pytest.raises(Kill):
            teach(run, settings(base))
    summary = teach(run, settings(base))
    folder = tmp_path / ".transfer"
    assert weights(folder) == whole[0]
    for student in ("student", "labelled_only"):
        assert without_seconds(summary[student]) == without_seconds(whole[1][student])
    history = [(row["student"], row["step"]) for row in read_rows(folder / "history.jsonl")]
    assert len(history) == len(set(history)) == 10
    assert {path.name for path in folder.iterdir()} == {"student", "labelled_only", "history.jsonl"}


def test_what_is_finished_is_not_taught_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tmp_path)
    first = teach(run, settings(base))
    monkeypatch.setattr(teaching.Course, "_train", None)
    assert teach(run, settings(base)) == first


def test_a_history_that_was_cut_short_is_read_up_to_its_last_whole_line(base: Path, tmp_path: Path) -> None:
    course = teaching.Course(settings(base), open_run(tmp_path), tmp_path, "student", base)
    whole = {"student": "student", "learner": 0, "step": 1}
    course.history.write_text(json.dumps(whole) + '\n{"student": "stu', encoding="utf-8")
    assert course._logged() == [whole]
    assert read_rows(course.history) == [whole], "what is appended next begins a line of its own"
    course.history.write_text('{"student"', encoding="utf-8")
    assert course._logged() == []


def test_a_full_disk_is_told(base: Path, tmp_path: Path) -> None:
    course = teaching.Course(settings(base), open_run(tmp_path), tmp_path, "student", base)
    course.history = Path("/dev/full")
    with pytest.raises(UserError, match="cannot write /dev/full: No space left on device"):
        course._log(0, Step(1, 2, 0.5, 1e-3, 1.0, 3, 0.1))


def test_a_base_that_was_half_made_when_killed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, model = next(iter(catalogue().items()))
    alive = False

    def convert(gguf: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        if not alive:
            raise Kill
        (folder / "model.safetensors").write_text("x")

    monkeypatch.setenv("SUPERTINY_MODELS", str(tmp_path))
    monkeypatch.setattr(_huggingface, "path_of", lambda name: tmp_path / f"{name}.gguf")
    monkeypatch.setattr(_gguf_to_hf, "load_gguf_student", convert)
    with pytest.raises(Kill):
        huggingface_folder(name, "transfer.student")
    alive = True
    folder = huggingface_folder(name, "transfer.student")
    assert folder == tmp_path / "huggingface" / f"{name}-{model.sha256[:8]}"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    alive = False
    assert huggingface_folder(name, "transfer.student") == folder, "made once"


class Exams:
    """Scores that are told in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
        self.scores = list(scores)
        self.seen: list[Any] = []

        def examine(course: Any, pupil: Pupil) -> float:
            self.seen.append(pupil.model.model.layers[0].mlp.up_proj.weight.detach().bfloat16().clone())
            return self.scores.pop(0)

        monkeypatch.setattr(teaching.Course, "_examine", examine)


def student(run: Run, chosen: Settings, base: Path) -> tuple[dict[str, Any], Any]:
    folder = run.folder / ".transfer"
    folder.mkdir()
    course = teaching.Course(chosen, run, folder, "student", base)
    summary = course.teach(examples("labelled", 6), chosen.learners)
    return summary, Pupil.open(folder / "student", "bfloat16").model.model.layers[0].mlp.up_proj.weight


@pytest.mark.parametrize(
    ("scores", "best", "measured"),
    [
        ((0.1, 0.5, 0.3, 0.2, 0.9, 0.9), 1, 4),  # two in a row no better: stopped, the best one kept
        ((0.1, 0.2, 0.3, 0.2, 0.5, 0.6), 5, 6),
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5), 2, 3),  # of equal ones the later
        ((0.0, 0.0, 0.1, 0.1, 0.0, 0.2), 3, 5),
    ],
)
def test_the_best_on_valid_is_kept_and_patience_ends(
    scores: tuple[float, ...], best: int, measured: int, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exams = Exams(monkeypatch, *scores)
    summary, weight = student(open_run(tmp_path), settings(base, evaluations=6), base)
    (learned,) = summary["learners"]
    assert len(learned["measured"]) == len(exams.seen) == measured
    assert (weight == exams.seen[best]).all()
    assert learned["valid_exact"] == max(scores[:measured])


def test_taught_on_the_grid_the_student_stands_on_it_and_goes_on_after_a_kill(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(base, quantization_aware="q4_0", labelled_only=[], evaluations=2)
    whole = teach(open_run(tmp_path / "whole"), chosen)
    taught = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / ".transfer" / "student", dtype=torch.float32)
    weights_on_grid = [layer.mlp.up_proj.weight for layer in taught.model.layers]
    assert all(torch.equal(round_q4_0(weight), weight) for weight in weights_on_grid)
    rounded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settle(rounded, "q4_0")
    pairs = zip(taught.model.layers.parameters(), rounded.model.layers.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs), "nothing was taught"
    run = open_run(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(teaching.Course, "_examine", _killed)
        with pytest.raises(KeyboardInterrupt):
            teach(run, chosen)
    again = teach(run, chosen)
    assert again["student"]["learners"][0]["measured"] == whole["student"]["learners"][0]["measured"]
    assert weights(tmp_path / "killed" / ".transfer")["student"] == weights(tmp_path / "whole" / ".transfer")["student"]


def _killed(*_: Any) -> float:
    raise KeyboardInterrupt


def test_learners_follow_each_other(base: Path, tmp_path: Path) -> None:
    run = open_run(tmp_path)
    summary = teach(run, settings(base, learners=[LEARNER, {**LEARNER, "passes": 1}], labelled_only=[]))
    assert [learner["learner"] for learner in summary["student"]["learners"]] == ["imitate", "imitate"]
    history = [(r["learner"], r["step"]) for r in read_rows(tmp_path / ".transfer" / "history.jsonl")]
    assert history == [(0, step) for step in range(1, 7)] + [(1, step) for step in range(1, 4)]
    # Without learners the student is its base, and the base stays where it is.
    assert summary["labelled_only"]["learners"] == []
    assert (base / "config.json").is_file()
    assert not (base / "supertiny.json").exists()
    assert Student.open(tmp_path / ".transfer" / "labelled_only").base == str(base)


def test_mistakes_are_told(base: Path, tmp_path: Path) -> None:
    run = open_run(tmp_path, train=0)
    with pytest.raises(UserError, match=r"train\.jsonl is empty"):
        teach(run, settings(base))
    run = open_run(tmp_path)
    with pytest.raises(UserError, match=r"transfer\.student: 'smollm3' is neither a folder .* nor a known model"):
        teach(run, settings(Path("smollm3")))
    with pytest.raises(UserError, match="has .* tokens, more than 10") as told:
        teach(run, settings(base, longest_tokens=10))
    assert "transfer.longest_tokens" in told.value.hint
    with pytest.raises(UserError, match=r"transfer\.learners\.0: needs live_teacher or token_scores"):
        settings(base, learners=["distil"])


def test_the_cards_of_a_student_say_what_it_was_taught(base: Path, tmp_path: Path) -> None:
    run = open_run(tmp_path)
    summary = teach(run, settings(base, format={"method": "chat_json"}))
    card = read_json(tmp_path / ".transfer" / "student" / "supertiny.json")
    assert card == {"format": {"method": "chat_json"}, "base": str(base), "seed": 7}
    assert read_json(tmp_path / ".transfer" / "student" / "training.json") == summary["student"]
