"""Trains with the learners of supertiny: python -m benchmarks._speed_ours JOB OUT; see benchmarks/_speed_jobs.py.

Loading and the first steps are not timed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from supertiny.core.methods import build
from supertiny.core.records import Example, Request, Tool, Verdict
from supertiny.training.learners.imitate import Imitate
from supertiny.training.lessons import Lesson
from supertiny.training.loop import Step
from supertiny.training.practice import Practice
from supertiny.training.pupil import Pupil


def imitate(job: dict[str, Any]) -> dict[str, Any]:
    """One pass over the rows, whose order is by seed."""
    pupil = Pupil.open(Path(job["model"]), job["precision"])
    lessons = [Lesson(tuple(row["ids"]), row["start"]) for row in job["rows"]]
    learner = Imitate(job["learning_rate"], job["passes"], job["batch"], job["weight_decay"], job["clip"])
    seconds, steps = timed(learner.fit(pupil, lessons, job["seed"]))
    if job.get("into"):
        pupil.save(Path(job["into"]))
    return {"seconds": seconds, "tokens": [step.tokens for step in steps], "losses": [step.loss for step in steps]}


def reinforce(job: dict[str, Any]) -> dict[str, Any]:
    """Each request once; those whose answers are all alike are not drawn again, so that the work is the rival's."""
    pupil = Pupil.open(Path(job["model"]), job["precision"])
    learner = build(
        "learners",
        {
            "method": "reinforce", "rows": job["batch"], "samples": job["samples"], "passes": 1, "redraws": 0,
            "least_signal": 0.0, "learning_rate": job["learning_rate"], "weight_decay": job["weight_decay"],
        },
    )  # fmt: skip
    form = build("formats", job["format"])
    tools = [Tool(**tool) for tool in job["tools"]]
    practice = Practice(form, tools, unjudged, max_tokens=job["longest"])
    lessons = [Lesson(tuple(row["ids"]), row["start"], Example.from_json(row["example"])) for row in job["rows"]]
    seconds, steps = timed(learner.fit(pupil, lessons, job["seed"], practice=practice))
    more = [dict(step.more) for step in steps]
    return {
        "seconds": seconds,
        "lengths": [one["answer_tokens"] for one in more],
        "rewards": [one["reward"] for one in more],
        "signal": [one["signal"] for one in more],
    }


def unjudged(request: Request, calls: Any) -> Verdict:
    """The reward is likeness to the gold calls, as the rival's is likeness to the gold text."""
    return Verdict("abstain")


def timed(steps: Iterator[Step]) -> tuple[list[float], list[Step]]:
    """(seconds of each step by the clock, all else included, its records)."""
    seconds, records = [], []
    began = time.perf_counter()
    for step in steps:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        records.append(step)
        print(f"step {step.step}: {seconds[-1]:.2f} s, loss {step.loss:.3f}", file=sys.stderr, flush=True)
        began = time.perf_counter()
    return seconds, records


def products(job: dict[str, Any]) -> dict[str, Any]:
    """Best of several measured rates of matrix products, in GFLOP/s: what this machine can do at most."""
    dtype = getattr(torch, job["precision"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = 0.0
    for rows, inner, columns in ((512, 576, 1536), (512, 1536, 576), (1024, 1536, 8960), (2048, 2048, 2048)):
        left, right = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
        for _ in range(job["repeats"]):
            began = time.perf_counter()
            torch.mm(left, right)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - began) / 1e9)
    return {"gigaflops": best}


def peak_bytes() -> int:
    """Most memory that this process has held; on a GPU, of the GPU's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():  # `getrusage` would count the parent's, too
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    report = {"imitate": imitate, "reinforce": reinforce, "products": products}[job["kind"]](job)
    report["peak_bytes"] = peak_bytes()
    Path(sys.argv[2]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
