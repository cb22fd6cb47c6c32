"""The stage over a real task, ledger and teacher; only the language model is invented."""

from __future__ import annotations

from pathlib import Path

import pytest

from supertiny.core.files import read_json
from supertiny.core.ledger import Ledger
from supertiny.core.progress import Progress
from supertiny.core.recipe import Recipe
from supertiny.core.records import Grammar, Prompt, Sampling
from supertiny.core.run import Run
from supertiny.core.task import load_task
from supertiny.prototype import teacher
from supertiny.prototype.settings import Settings as PrototypeSettings
from supertiny.report.settings import Settings
from supertiny.report.stage import run
from tests.fake_engine import FakeEngine
from tests.small_task import write_task

SETTINGS = Settings(latency_requests=3, warm_up_requests=1)


def written(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """Knows one function and five of the six areas: right on 5 of the 18 test rows."""
    asked = str(prompt.messages[-1]["content"])
    area = next((area for area in ("Kitchen", "Bedroom", "Garden", "Hall") if area.lower() in asked), "Attic")
    return f'[{{"name": "TurnOn", "arguments": {{"area": "{area}"}}}}]'


@pytest.fixture
def real_run(tmp_path: Path) -> Run:
    task = load_task(write_task(tmp_path / "task"))
    (tmp_path / "run").mkdir()
    recipe = Recipe("small", tmp_path / "task", tmp_path / "run", 7, {"report": {"latency_requests": 3}})
    return Run(tmp_path / "run", recipe, task, Ledger(tmp_path / "run" / "ledger.sqlite"), Progress(quiet=True))


def test_a_teacher_behind_the_ledger_is_paid_once_and_timed_for_real(real_run: Run) -> None:
    engine = FakeEngine(written)

    def plain() -> teacher.Pipeline:
        return teacher.plain_of(PrototypeSettings(), real_run, engine, "plain on test")

    reports = []
    for key in ("one", "two"):
        real_run.do("report", key, lambda folder: run(SETTINGS, real_run, folder, {"plain_prompt": plain}))
        reports.append(read_json(real_run.folder / "report" / "report.json"))
    # 18 rows through the ledger once; 4 single requests (a warm-up and three timed) computed in both runs.
    assert engine.batches == [1] * 4 + [18] + [1] * 4
    first, second = ({entry["name"]: entry for entry in report["answerers"]}["plain_prompt"] for report in reports)
    assert first["exact"] == second["exact"] == pytest.approx(5 / 18)
    assert first["tokens_in"] == second["tokens_in"] == 10
    assert first["dollars_per_1000"] == second["dollars_per_1000"] > 0
    assert first["seconds_from"] == "ledger"
    items = reports[1]["costs"]["items"]
    assert [(item["name"], item["calls"], item["one_off"]) for item in items] == [("plain on test", 18, False)]
    assert real_run.manifest["stages"]["report"]["summary"]["n"] == 18
    assert reports[0]["task"]["splits"] == {"labelled": 24, "unlabelled": 18, "valid": 18, "test": 18}
