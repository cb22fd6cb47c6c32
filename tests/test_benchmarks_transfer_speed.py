"""The training-speed benchmark on a small student: our runs are real, the rival is a script of known numbers."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from benchmarks import _speed_jobs as jobs
from benchmarks import _speed_ours, transfer_speed
from benchmarks._speed_jobs import Setting
from benchmarks.transfer_speed import Found, compare, operations, options_of, run
from supertiny.core.errors import UserError
from supertiny.training.lessons import grouped
from tests.small_task import small_task
from tests.tiny_student import write_student

# Stands in for TRL's Python: it answers the look for TRL, and a job with a report of one second a step.
RIVAL = """#!{python}
import json, sys
if sys.argv[1] == "-c":
    raise SystemExit(0)
job = json.load(open(sys.argv[2]))
steps = len(job["rates"])
report = {{"seconds": [1.0] * steps, "peak_bytes": 8_000_000_000, "versions": {{"trl": "1.16.0"}}}}
if job["kind"] == "imitate":
    lengths = [len(row["ids"]) for row in job["rows"]]
    batches = [lengths[start : start + job["batch"]] for start in range(0, len(lengths), job["batch"])]
    report |= {{"tokens": [sum(batch) for batch in batches], "losses": [5.0] * steps}}
else:
    report |= {{"lengths": [9.0], "rewards": [0.5]}}
json.dump(report, open(sys.argv[3], "w"))
"""


@pytest.fixture
def rival(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(RIVAL.format(python=sys.executable), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def setting(tmp_path: Path, rival: Path) -> Setting:
    student = write_student(tmp_path / "student")
    task = small_task()
    lessons = jobs.lessons_of(task, AutoTokenizer.from_pretrained(student), 12)
    return Setting(student, task, "float32", lessons, rival, 4)


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading torch once for each run would take most of the test's time."""

    def run_here(job: Any) -> dict[str, Any]:
        kinds: Any = {
            "imitate": _speed_ours.imitate,
            "reinforce": _speed_ours.reinforce,
            "products": _speed_ours.products,
        }
        report: dict[str, Any] = kinds[job["kind"]](json.loads(json.dumps(job)))
        return {**report, "peak_bytes": 2_000_000_000}

    monkeypatch.setattr(jobs, "ours", run_here)


def test_all_parts_publish_figures_with_their_spread(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_this_process(monkeypatch)
    monkeypatch.setattr(transfer_speed, "setting_of", lambda options, rival: setting)
    monkeypatch.setattr(transfer_speed, "REQUESTS", 4)
    monkeypatch.setattr(transfer_speed, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(transfer_speed, "limit_of", lambda precision: 100.0)
    target = tmp_path / "figures.json"
    run(options_of(["--repeats", "2", "--json", str(target), "--rival-python", str(setting.rival)]))
    figures = json.loads(target.read_text(encoding="utf-8"))["figures"]
    assert figures["sft_memory_ratio"] == pytest.approx(0.25)
    assert figures["sft_tokens_ratio_low"] <= figures["sft_tokens_ratio"] <= figures["sft_tokens_ratio_high"]
    assert figures["grpo_steps_ratio_low"] <= figures["grpo_steps_ratio"] <= figures["grpo_steps_ratio_high"]
    assert figures["grpo_steps_ratio"] > 0
    assert 0 < figures["matmul_share"] == pytest.approx(figures["arithmetic_gigaflops"] / 100)
    assert figures["loss_float32_apart_most"] > 0
    said = capsys.readouterr()
    assert "this processor does not multiply it" in said.err
    assert "losses of the same batches" in said.out


def test_the_rival_gets_our_batches_in_our_order_and_our_schedule(setting: Setting) -> None:
    given = jobs.rival_imitation(setting, True, "eager", False)
    groups = grouped(setting.lessons, 4, jobs.SEED)
    assert [row["ids"] for row in given["rows"]] == [lesson.ids for group in groups for lesson in group]
    assert len(given["rates"]) == len(groups)
    assert max(given["rates"]) == setting.learner.learning_rate
    own = jobs.rival_imitation(setting, False, "sdpa", True)
    assert sorted(row["ids"] for row in own["rows"]) == sorted(row["ids"] for row in given["rows"])
    assert (own["as_given"], own["attention"], own["checkpointing"]) == (False, "sdpa", True)


def test_our_run_learns_and_tells_each_step(setting: Setting, tmp_path: Path) -> None:
    job = {**jobs.imitation(setting), "into": str(tmp_path / "taught"), "passes": 3, "learning_rate": 3e-3}
    report = _speed_ours.imitate(json.loads(json.dumps(job)))
    assert len(report["seconds"]) == len(report["losses"]) == 9
    assert sum(report["tokens"]) == 3 * sum(len(lesson.ids) for lesson in setting.lessons)
    assert report["losses"][-1] < report["losses"][0]
    assert (tmp_path / "taught" / "config.json").exists()


def test_arithmetic_counts_each_weight_three_times_and_attention(setting: Setting) -> None:
    tokens = [sum(len(lesson.ids) for lesson in setting.lessons)]
    report = {"tokens": [0, 0, *tokens], "seconds": [9.0, 9.0, 2.0]}
    answers = sum(len(lesson.ids) - lesson.answer_start for lesson in setting.lessons)
    block = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128  # q and o, k and v, the three of the gated layer
    attention = sum(len(lesson.ids) ** 2 for lesson in setting.lessons) * 64
    vocabulary = len(AutoTokenizer.from_pretrained(setting.model))
    expected = 6 * (2 * block * tokens[0] + 64 * vocabulary * answers) + 12 * 2 * attention
    assert operations(setting, report) == pytest.approx(expected / 2.0)


def test_first_losses_stand_beside_each_other() -> None:
    found = Found()
    compare(found, "float32", {"losses": [3.0, 2.0]}, {"losses": [3.0, 2.5]})
    compare(found, "bfloat16", {"losses": [3.1, 2.0]}, {"losses": [3.1, 2.0]})
    assert found.losses[1] == {
        "step": 2,
        "ours_float32": 2.0,
        "trl_float32": 2.5,
        "ours_bfloat16": 2.0,
        "trl_bfloat16": 2.0,
    }
    figures = {name: value for name, _, value in found.rows}
    assert figures["loss_float32_apart_most"] == 0.5
    assert figures["loss_float32_apart_of_means"] == 0.25
    assert figures["loss_bfloat16_apart_most"] == 0.0


def test_each_side_is_held_against_its_own_float32(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch)
    monkeypatch.setattr(transfer_speed, "multiplies_bfloat16", lambda: True)
    found = Found()
    mine = jobs.ours(jobs.imitation(setting))
    compare(found, "float32", mine, {"losses": [4.0] * len(mine["losses"])})
    transfer_speed.losses(setting, options_of([]), found)
    figures = {name: value for name, _, value in found.rows}
    assert figures["loss_trl_bfloat16_apart"] == pytest.approx(1.0)
    assert 0 < figures["loss_ours_bfloat16_apart"] < 0.05


def test_a_rival_that_is_not_there_is_told_with_the_way_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="TRL, the peer, is not installed") as told:
        jobs.check_rival(tmp_path / "nowhere")
    assert "trl==1.16" in told.value.hint
    assert "--rival-python" in told.value.hint


def test_a_run_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'out of luck' >&2\nexit 3\n", encoding="utf-8")
    broken.chmod(0o755)
    with pytest.raises(UserError, match="out of luck"):
        jobs.rivals({"kind": "imitate"}, broken)
