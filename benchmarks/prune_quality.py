"""Structured pruning, method by method: exact calls after the same share of the blocks went and the same recovery.

One student is taught on gold labels, or given by --student. Every cell cuts it by one method, teaches it as many steps
to write as it did before (distil from the unpruned student), and measures it on valid. A share is of the weights of all
blocks; drop_blocks takes whole blocks, the others FFN channels, elastic half of each. Random and magnitude are
the floors. Methods that learn what to cut do so before the recovery: the table says how long. A finished cell is a
file and is not done again; one that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks._shapes import METHODS, Shape, block_of, known_methods
from benchmarks._staged import (
    Figure,
    difference_figures,
    mean_by_row,
    opened,
    prepared,
    right,
    settings_of,
    share_figures,
    staged,
)
from benchmarks._table import arguments, mistakes_told, print_rows, publish
from benchmarks.data_selection import content_of
from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, read_json, read_rows, sha256_of, write_json
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.recipe import Recipe, read_recipe
from supertiny.core.records import Example
from supertiny.core.run import Run
from supertiny.core.student import Student

SHARES = (0.2, 0.3)
STEPS = 300
CALIBRATION_ROWS = 128
LONGEST = 512  # tokens of a lesson
CHECKPOINT_STEPS = 25
RECOVERY = {"method": "distil", "learning_rate": 2e-4, "rows": 16}
WHOLE = "unpruned"
PACKAGES = ["supertiny", "torch", "transformers", "numpy"]
_RECIPE = Path(__file__).parents[1] / "examples" / "smart_home" / "recipe.yaml"
Cells = Mapping[tuple[str, float, int], Mapping[str, Any]]
"""(method, share, seed) -> hits on valid, parameters, seconds."""


@dataclass(frozen=True)
class Job:
    """What is the same for all cells."""

    run: Run
    student: Path
    rows: Sequence[Example]
    valid: Sequence[Example]
    steps: int
    """Of the recovery."""
    learning_steps: int
    """Batches for methods that learn what to cut; 0 is their own number."""
    max_tokens: int
    """Of an answer."""
    folder: Path

    @cached_property
    def shape(self) -> Shape:
        return Shape.of(self.student)

    @cached_property
    def form(self) -> Any:
        return build("formats", Student.open(self.student).format)

    @cached_property
    def key(self) -> str:
        weights = [sha256_of(file) for file in sorted(self.student.glob("*.safetensors"))]
        asked = [row.request.id for row in self.valid]
        same = [self.run.task.hash, content_of(self.rows), asked, self.steps, self.max_tokens]
        same += [RECOVERY, CALIBRATION_ROWS, LONGEST]
        return hash_of([weights, same])


def main() -> None:
    options = parser().parse_args()
    with mistakes_told():
        run(options)


def parser() -> argparse.ArgumentParser:
    made = arguments(__doc__.splitlines()[0], "prune_quality")
    made.add_argument("--methods", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(METHODS)}; default: all")
    made.add_argument("--shares", type=float, nargs="+", default=list(SHARES), metavar="SHARE")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    made.add_argument("--rows", type=int, default=0, help="rows to learn from; 0 is all")
    made.add_argument("--valid-rows", type=int, default=0, help="rows of valid to measure on; 0 is all")
    made.add_argument("--steps", type=int, default=STEPS, help="of the recovery")
    made.add_argument("--learning-steps", type=int, default=0, help="of methods that learn what to cut; 0 is their own")
    made.add_argument("--max-tokens", type=int, default=96, help="of an answer")
    made.add_argument("--student", type=Path, metavar="FOLDER", help="a student of the transfer stage to begin with")
    made.add_argument("--recipe", type=Path, default=_RECIPE, help="whose task, rows and transfer are taken")
    made.add_argument("--set", nargs="+", default=[], metavar="A.B=VALUE", help="other settings of the recipe")
    made.add_argument("--run", type=Path, metavar="FOLDER", help="a finished run, whose verified rows are learned")
    made.add_argument("--folder", type=Path, default=Path("runs/benchmarks/prune_quality"), help="of what was done")
    return made


def run(options: argparse.Namespace) -> None:
    methods, progress = known_methods(options.methods), Progress()
    seeds = options.seeds[:1] if options.quick else options.seeds
    shares = options.shares[:1] if options.quick else options.shares
    if not all(0 < share < 1 for share in shares):
        raise UserError(f"--shares {shares}: must lie between 0 and 1", "0.2 is a fifth of the blocks' weights")
    overrides = [f"folder={options.folder / 'student'}", f"seed={seeds[0]}", *options.set]
    recipe = read_recipe(options.recipe, overrides)
    with opened(recipe, progress) as opened_run:
        job = job_of(opened_run, recipe, options)
        asked = [(method, share, seed) for share in shares for method in methods for seed in seeds]
        for method, share, seed in asked:  # a share that cannot be had is told before anything is spent
            block_of(method, share, job.shape, seed)
        whole = unpruned(job)
        cells = all_cells(job, asked)
    figures, table = summarised(cells, whole)
    print_rows(f"prune_quality: after {job.steps} steps of recovery", table)
    details = {"table": table, "seeds": seeds, "recovery": RECOVERY, "steps": job.steps, "rows": len(job.rows)}
    details["learning_steps"] = job.learning_steps or "their own"
    publish("prune_quality: exact calls on valid", figures, PACKAGES, options.json, {**details, "cells": told(cells)})


def job_of(run: Run, recipe: Recipe, options: argparse.Namespace) -> Job:
    """Prepares rows and student."""
    count = min(options.rows or 64, 64) if options.quick else options.rows
    read = prepared(run, recipe.sections["prototype"].get("curators", ()), count, options.run)
    student = options.student
    if student is None:
        section = {**recipe.sections["transfer"], "labelled_only": []}
        section |= {"evaluations": 1, "valid_rows": 20} if options.quick else {}
        student = staged(run, "transfer", settings_of("transfer", section), read)[0] / "student"
    Student.open(student)  # where it is none, that is told here
    rows = [Example.from_json(row) for row in read_rows(run.folder / "prototype" / "train.jsonl")]
    valid = run.task.valid[: 20 if options.quick else options.valid_rows or None]
    steps, learning = (min(options.steps, 4), 8) if options.quick else (options.steps, options.learning_steps)
    return Job(run, student, rows, valid, steps, learning, options.max_tokens, options.folder)


def all_cells(job: Job, asked: Sequence[tuple[str, float, int]]) -> Cells:
    """Every cell, and now and then how long the others will take."""
    cells: dict[tuple[str, float, int], Mapping[str, Any]] = {}
    spent: list[float] = []
    for place, (method, share, seed) in enumerate(asked):
        left = f", about {sum(spent) / len(spent) * (len(asked) - place):.0f} s left" if spent else ""
        job.run.progress.note(f"[{place + 1}/{len(asked)}] {method} at {share:.0%}, seed {seed}{left}")
        began = time.perf_counter()
        stood = cell_file(job, method, share, seed).is_file()
        cells[method, share, seed] = cell(job, method, share, seed)
        if not stood:
            spent.append(time.perf_counter() - began)
    return cells


def cell_file(job: Job, method: str, share: float, seed: int) -> Path:
    block = block_of(method, share, job.shape, seed, job.learning_steps)
    return job.folder / "cells" / f"{method}-{share * 100:.0f}-{hash_of([job.key, block, seed])}.json"


def cell(job: Job, method: str, share: float, seed: int) -> Mapping[str, Any]:
    """A cut, its recovery and its measurement, from its file where it was done before."""
    path = cell_file(job, method, share, seed)
    if not path.is_file():
        work = path.with_suffix(".work")
        title = f"{method} at {share:.0%}"
        cut = reshaped(job, block_of(method, share, job.shape, seed, job.learning_steps), seed, work, title)
        pupil, taught = recovered(job, work, seed, title)
        began = time.perf_counter()
        hits = measured(job, pupil)
        result = {
            "method": method, "share": share, "seed": seed, "block": cut["block"], "hits": hits,
            "parameters": cut["parameters"], "removed": cut["removed"], "cut_seconds": cut["seconds"], **taught,
            "measure_seconds": time.perf_counter() - began,
        }  # fmt: skip
        write_json(path, result)
        shutil.rmtree(work)
    done: Mapping[str, Any] = read_json(path)
    return done


def unpruned(job: Job) -> Mapping[str, Any]:
    """The student itself, measured by the same means."""
    path = job.folder / "cells" / f"{WHOLE}-{job.key}.json"
    if not path.is_file():
        from supertiny.training.pupil import Pupil

        pupil = Pupil.open(job.student)
        write_json(path, {"hits": measured(job, pupil), "parameters": pupil.parameters})
    done: Mapping[str, Any] = read_json(path)
    return done


def reshaped(job: Job, block: Mapping[str, Any], seed: int, work: Path, title: str) -> Mapping[str, Any]:
    """Leaves the cut student in `work/student`; gives what went and the seconds that it took."""
    import torch

    from supertiny.compress.changing import reshaped as cut_by
    from supertiny.training.lessons import collate
    from supertiny.training.pupil import Pupil

    path = work / "cut.json"
    if not path.is_file():
        pupil = Pupil.open(job.student)
        before, lessons = pupil.parameters, lessons_of(job, pupil, seed)[:CALIBRATION_ROWS]
        ordered = sorted(lessons, key=lambda lesson: len(lesson.ids))
        batches = [collate(ordered[start : start + 32], pupil.pad_id) for start in range(0, len(ordered), 32)]
        began = time.perf_counter()
        pupil.model = cut_by(build("reshapers", block), pupil.model.eval(), batches, job.run.progress, title)
        seconds = time.perf_counter() - began
        shutil.rmtree(work, ignore_errors=True)
        pupil.save(work / "student", torch.float32)
        removed = (before - pupil.parameters) / job.shape.weights
        write_json(path, {"block": dict(block), "parameters": pupil.parameters, "removed": removed, "seconds": seconds})
    done: Mapping[str, Any] = read_json(path)
    return done


def lessons_of(job: Job, pupil: Any, seed: int) -> list[Any]:
    """All lessons, in an order by seed."""
    from supertiny.training.lessons import encode_lessons

    rows = list(job.rows)
    random.Random(seed).shuffle(rows)
    return encode_lessons(rows, job.form, job.run.task.tools, pupil.tokenizer, LONGEST)


def recovered(job: Job, work: Path, seed: int, title: str) -> tuple[Any, dict[str, Any]]:
    """The cut student, taught for as many steps as all others by the unpruned one; seconds and steps."""
    from supertiny.training.pupil import Pupil

    pupil = Pupil.open(work / "student")
    if job.steps == 0:
        return pupil, {"recovery_steps": 0, "recovery_seconds": 0.0}
    lessons, learner = lessons_of(job, pupil, seed), build("learners", RECOVERY)
    passes = math.ceil(job.steps * learner.rows / len(lessons))
    lessons = lessons[: math.ceil(job.steps / passes) * learner.rows]
    learner = replace(learner, passes=passes)
    teacher, checkpoint = Pupil.open(job.student), work / "checkpoint.safetensors"
    total, done = math.ceil(len(lessons) / learner.rows) * passes, 0
    clock = work / "seconds.json"  # of the steps before the last checkpoint, where it was stopped there
    seconds = float(read_json(clock)) if checkpoint.is_file() and clock.is_file() else 0.0
    with job.run.progress.task(f"recovering after {title}", total, "steps") as tick:
        for step in learner.fit(pupil, lessons, seed, checkpoint, CHECKPOINT_STEPS, teacher=teacher):
            tick(step.step - done)
            done, seconds = step.step, seconds + step.seconds
            if step.step % CHECKPOINT_STEPS == 0:
                write_json(clock, seconds)
    return pupil, {"recovery_steps": done, "recovery_seconds": seconds}


def measured(job: Job, pupil: Any) -> list[bool]:
    """Per row of valid whether it is answered exactly: greedily, without a grammar."""
    from supertiny.engines._torch_engine import TorchEngine
    from supertiny.engines.torch import Torch
    from supertiny.formats._answerer import ModelAnswerer

    pupil.model.eval()
    engine = TorchEngine(Torch(), job.student, "pupil", pupil.model, pupil.tokenizer)
    answerer = ModelAnswerer("pupil", engine, job.form, job.run.task.tools, job.max_tokens, constrained=False)
    return right(answerer.answer([row.request for row in job.valid]), job.valid, job.run.task)


def summarised(cells: Cells, whole: Mapping[str, Any]) -> tuple[list[Figure], list[dict[str, Any]]]:
    """(figures, one line a method and share, that of the unpruned student first)."""
    student = mean_by_row([whole["hits"]])
    figures = share_figures("student_exact", "the unpruned student", student)
    table = [{"method": WHOLE, "share": 0.0, "parameters": whole["parameters"], **shown(figures)}]
    for method, share in dict.fromkeys((method, share) for method, share, _ in cells):
        of_seeds = [cell for (name, part, _), cell in cells.items() if (name, part) == (method, share)]
        by_row, name = mean_by_row([cell["hits"] for cell in of_seeds]), f"{method}_{share * 100:.0f}"
        found = share_figures(f"exact_{name}", f"exact calls, {share:.0%} of the blocks' weights gone", by_row)
        apart = difference_figures(f"difference_{name}", "minus the unpruned student's", by_row, student)
        sizes: list[Figure] = [
            (f"parameters_{name}", "weights left", float(of_seeds[0]["parameters"])),
            (f"cut_seconds_{name}", "to find what goes, mean", mean(of_seeds, "cut_seconds")),
            (f"recovery_seconds_{name}", "of the recovery, mean", mean(of_seeds, "recovery_seconds")),
        ]
        figures += [*found, *apart, *sizes]
        table.append(
            {"method": method, "share": share, "parameters": of_seeds[0]["parameters"], **shown(found),
             "minus_student": apart[0][2], "minus_low": apart[1][2], "minus_high": apart[2][2],
             "removed": mean(of_seeds, "removed"), "cut_s": mean(of_seeds, "cut_seconds"),
             "recovery_s": mean(of_seeds, "recovery_seconds"), "seeds": len(of_seeds)}
        )  # fmt: skip
    return figures, table


def shown(figures: Sequence[Figure]) -> dict[str, Any]:
    exact, low, high, n = (value for _, _, value in figures[:4])
    return {"exact": exact, "low": low, "high": high, "n": int(n)}


def mean(cells: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(cell[name] for cell in cells)) / len(cells)


def told(cells: Cells) -> list[dict[str, Any]]:
    """The cells as the JSON has them: settings and steps, without the rows."""
    return [{key: value for key, value in cell.items() if key != "hits"} for cell in cells.values()]


if __name__ == "__main__":
    main()
