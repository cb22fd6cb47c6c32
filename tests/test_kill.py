"""Killed at any moment (SIGKILL, from outside) and run again: nothing is paid twice, and the same results come out."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supertiny.core.files import read_json, read_rows, sha256_of
from supertiny.core.recipe import STAGES
from tests.small_task import write_task
from tests.tiny_student import write_student

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# The thread's first two rooms with an engine that notes what it computes and takes its time.
PROGRAM = """
import sys, time
from pathlib import Path
from supertiny import pipeline
from supertiny.core.progress import Progress
from supertiny.prototype import stage
from tests.fake_engine import FakeEngine
from tests.prototype.test_stage import author

class Slow(FakeEngine):
    def complete(self, prompts, sampling, grammar=None, done=None):
        for index, prompt in enumerate(prompts):
            (written,) = super().complete([prompt], sampling)
            time.sleep(0.005)
            with Path(sys.argv[2]).open("a") as log:
                log.write(prompt.messages[0]["content"][-40:] + prompt.messages[-1]["content"] + "\\n")
            done(index, written)

stage.open_engine = lambda settings: Slow(author)
recipe = pipeline.load_recipe(Path(sys.argv[1]))
for name in ("prototype", "transfer"):
    pipeline.execute(recipe, only=name, progress=Progress(quiet=True))
"""
LEARNER = {"method": "imitate", "rows": 2, "passes": 2, "learning_rate": 3e-3}


def written(folder: Path) -> Path:
    write_task(folder / "task")
    write_student(folder / "base")
    transfer = {"student": str(folder / "base"), "learners": [LEARNER], "labelled_only": [LEARNER], "valid_rows": 2}
    recipe = {
        "task": str(folder / "task"),
        "folder": str(folder / "run"),
        "prototype": {"steps": ["retrieve", "fill"], "plain_rows": 4, "chunk": 8},
        "transfer": {**transfer, "precision": "float32", "evaluations": 4, "checkpoint_steps": 3},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder


def begin(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(folder / "recipe.yaml"), str(folder / "computed.txt")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def results(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {
        f"{stage}/{name}": sha256_of(folder / "run" / stage / name)
        for stage, name in (("transfer", "student/model.safetensors"), ("transfer", "labelled_only/model.safetensors"))
    }
    for name in ("train", "pool", "valid"):
        rows = read_rows(folder / "run" / "prototype" / f"{name}.jsonl")
        found[name] = [{key: value for key, value in row.items() if key != "cost"} for row in rows]  # seconds differ
    return found


def wait_for(process: subprocess.Popen[bytes], folder: Path, seconds: float) -> None:
    """Until the process has taken the run's lock, and for some time more."""
    while process.poll() is None and f"{process.pid}" not in _text(folder / "run" / "lock"):
        time.sleep(0.005)
    ends = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < ends:
        time.sleep(0.005)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def test_killed_at_random_moments(tmp_path: Path) -> None:
    whole, broken = written(tmp_path / "whole"), written(tmp_path / "broken")
    process = begin(whole)
    assert process.communicate()[1] is not None
    assert process.returncode == 0
    generator, kills = random.Random(3), 0
    for _ in range(5):
        process = begin(broken)
        wait_for(process, broken, generator.uniform(0.05, 1.5))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        stands = [stage for stage in STAGES if (broken / "run" / stage).exists()]
        assert all(stage in read_json(broken / "run" / "manifest.json")["stages"] for stage in stands)
    process = begin(broken)
    told = process.communicate()[1].decode()
    assert process.returncode == 0, told
    assert kills >= 2
    computed = (broken / "computed.txt").read_text(encoding="utf-8").splitlines()
    once = (whole / "computed.txt").read_text(encoding="utf-8").splitlines()
    assert set(computed) == set(once)
    assert len(once) == len(set(once))
    assert len(computed) - len(once) <= kills, "at most the call in hand at each kill is computed again"
    before, after = results(whole), results(broken)
    # The two bases stand in different folders, which no result names.
    assert after == before
