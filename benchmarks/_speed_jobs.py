"""Runs of the training-speed benchmark: each in a process of its own, ours and the rival's by turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.task import Task
from supertiny.training.learners.imitate import Imitate
from supertiny.training.lessons import Lesson, encode_lessons, grouped
from supertiny.training.loop import Plan, learning_rate_at

_RIVAL = Path(__file__).with_name("_speed_rival.py")
UNTIMED = 2  # first steps, in which memory is laid out
SEED = 7
TO_MAKE = (
    "make one beside ours, with the same torch: python3.11 -m venv rival && rival/bin/pip install torch=={torch} "
    "transformers=={transformers} accelerate=={accelerate} 'trl==1.16.*' datasets, then --rival-python rival/bin/python"
)
Report = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    model: Path
    task: Task
    precision: str
    lessons: Sequence[Lesson]
    rival: Path | None
    batch: int = 16
    learner: Imitate = field(default_factory=lambda: Imitate(rows=16, passes=1, learning_rate=1e-4))


def lessons_of(task: Task, tokenizer: Any, count: int) -> list[Lesson]:
    """The first rows as the student is taught them."""
    return encode_lessons(task.labelled[:count], build("formats", "compact"), task.tools, tokenizer)


def imitation(setting: Setting, precision: str = "") -> Report:
    """A job of our side: one pass over all rows."""
    learner = setting.learner
    return {
        "kind": "imitate",
        "model": str(setting.model),
        "precision": precision or setting.precision,
        "batch": setting.batch,
        "passes": 1,
        "learning_rate": learner.learning_rate,
        "weight_decay": learner.weight_decay,
        "clip": learner.clip,
        "seed": SEED,
        "rows": [{"ids": lesson.ids, "start": lesson.answer_start} for lesson in setting.lessons],
    }


def rival_imitation(
    setting: Setting, as_given: bool, attention: str, checkpointing: bool, precision: str = ""
) -> Report:
    """The same for the rival: in our batches, or in the order in which its trainer draws the rows."""
    job = imitation(setting, precision)
    groups = grouped(setting.lessons, setting.batch, SEED)
    if as_given:
        job["rows"] = [{"ids": row.ids, "start": row.answer_start} for group in groups for row in group]
    plan = Plan.of(setting.learner, SEED)
    rates = [learning_rate_at(step, len(groups), plan) for step in range(len(groups))]
    return {**job, "rates": rates, "as_given": as_given, "attention": attention, "checkpointing": checkpointing}


def practice_job(setting: Setting, model: Path, steps: int, requests: int, samples: int, longest: int) -> Report:
    """Reinforcement by both sides: `requests` a step, `samples` answers of at most `longest` tokens to each."""
    form = build("formats", "compact")
    rows = []
    for lesson in setting.lessons[: steps * requests]:
        if lesson.example is None or lesson.example.answer is None:
            continue
        rows.append(
            {
                "ids": lesson.ids,
                "start": lesson.answer_start,
                "example": lesson.example.to_json(),
                "prompt": form.encode(lesson.example.request, setting.task.tools).text,
                "gold": form.write(lesson.example.answer),
            }
        )
    return {
        "kind": "reinforce",
        "model": str(model),
        "precision": setting.precision,
        "format": "compact",
        "tools": [
            {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
            for tool in setting.task.tools
        ],
        "rows": rows,
        "batch": requests,
        "samples": samples,
        "longest": longest,
        "learning_rate": 1e-6,
        "weight_decay": 0.0,
        "clip": 1.0,
        "seed": SEED,
        "rates": [1e-6] * steps,
        "attention": "eager",
        "checkpointing": False,
    }


def ours(job: Mapping[str, Any]) -> Report:
    """The report of a run of ours."""
    return _run([sys.executable, "-m", "benchmarks._speed_ours"], job, "supertiny")


def rivals(job: Mapping[str, Any], python: Path) -> Report:
    """The report of a run of TRL. Raises UserError with its last words where it fails."""
    return _run([str(python), str(_RIVAL)], job, "TRL")


def _run(command: Sequence[str], job: Mapping[str, Any], name: str) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "job.json", Path(folder) / "report.json"
        source.write_text(json.dumps(job), encoding="utf-8")
        done = subprocess.run([*command, source, target], capture_output=True, text=True, check=False)
        if done.returncode or not target.exists():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}, no words"]
            raise UserError(f"a run of {name} failed: {last[0]}", "run it alone to see more")
        report: Report = json.loads(target.read_text(encoding="utf-8"))
        return report


def check_rival(python: Path | None) -> Path:
    """The Python that has TRL. Raises UserError that says how to make one."""
    from benchmarks._table import versions

    hint = TO_MAKE.format(
        **{name: v.split("+")[0] for name, v in versions(["torch", "transformers", "accelerate"]).items()}
    )
    known = python or Path(sys.executable)
    look = "import importlib.util as u; raise SystemExit(any(u.find_spec(m) is None for m in ('trl', 'datasets')))"
    try:
        found = subprocess.run([known, "-c", look], capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        raise UserError(f"TRL, the peer, is not installed for {known}", hint)
    return known


def rate_of(report: Report) -> float:
    """Tokens a second, padding not counted, without the first steps."""
    seconds = sum(report["seconds"][UNTIMED:])
    return float(sum(report["tokens"][UNTIMED:]) / seconds)


def steps_rate_of(report: Report) -> float:
    """Steps a second, without the first."""
    timed = report["seconds"][1:]
    return len(timed) / sum(timed)


def with_spread(name: str, meaning: str, values: Sequence[float]) -> list[tuple[str, str, float]]:
    """The median of several runs, and the lowest and highest where there are several."""
    rows = [(name, meaning, statistics.median(values))]
    if len(values) > 1:
        rows += [(f"{name}_low", "lowest of the runs", min(values)), (f"{name}_high", "highest", max(values))]
    return rows


def ratios(left: Sequence[float], right: Sequence[float]) -> list[float]:
    """Of runs that stood next to each other."""
    return [a / b for a, b in zip(left, right, strict=True)]
