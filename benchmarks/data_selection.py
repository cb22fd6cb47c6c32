"""Selected rows against as many random ones: the student trained on 400 rows of each curator's choice.

Random rows are as many as the curator chose, from the same pool. Curators that ask a teacher or a person are judged by
a finished run (--run): its rows against as many of those that the curator neither made nor changed. Every cell is a
training from the base model and a measurement on valid; a finished cell is a file and is not done again, and equal rows
share one. Where a curator has no figure, the JSON says why.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._selecting import (
    ROWS,
    TASKS,
    asks_somebody,
    chosen,
    curator_bench,
    drawn,
    known_curators,
    rows_of_run,
    skewed,
    task_with_pool,
)
from benchmarks._table import arguments, mistakes_told, print_rows, publish
from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, read_json, write_json
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.records import Example
from supertiny.core.scoring import exact, paired_bootstrap
from supertiny.core.task import Task

STUDENT = "smollm2-135m-instruct-q4_1"
LEARNER = {"method": "imitate", "passes": 3, "rows": 16, "learning_rate": 3e-4}
FORMAT = "compact"
VALID_ROWS = 200
PACKAGES = ["supertiny", "torch", "transformers", "scikit-learn", "openvino-genai"]
RANDOM = "random"
Cells = Mapping[tuple[str, str, int], Mapping[str, Any]]
"""(task, curator, seed) -> rows, `hits` on valid, and `random_hits` of as many random rows."""


@dataclass(frozen=True)
class Pick:
    """Rows to train on, and as many random ones beside them."""

    rows: Sequence[Example]
    random: Sequence[Example]


def main() -> None:
    options = parser().parse_args()
    with mistakes_told():
        run(options)


def parser() -> argparse.ArgumentParser:
    made = arguments(__doc__.splitlines()[0], "data_selection")
    made.add_argument("--task", choices=TASKS, action="append", help="this task alone; may be given again")
    made.add_argument("--curators", nargs="+", default=[], metavar="NAME", help="these alone (default: all)")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    made.add_argument("--rows", type=int, default=ROWS, help="rows to train on")
    made.add_argument("--valid-rows", type=int, default=VALID_ROWS, help="rows of valid to measure on; 0 is all")
    made.add_argument("--data", type=Path, help="folder above snips (default: ../shared/data)")
    made.add_argument(
        "--pool", nargs="+", default=[], metavar="TASK=FILE", help="a run's prototype/pool.jsonl instead of gold labels"
    )
    made.add_argument(
        "--run", nargs="+", default=[], metavar="TASK=FOLDER", help="a finished run, for curators that ask somebody"
    )
    made.add_argument("--skewed", action="store_true", help="half of each pool, uneven and repeating, as logs may be")
    made.add_argument("--folder", type=Path, default=Path("runs/benchmarks/data_selection"), help="of finished cells")
    return made


def run(options: argparse.Namespace) -> None:
    tasks = options.task or list(TASKS)
    names = known_curators(options.curators)
    seeds = options.seeds[:1] if options.quick else options.seeds
    rows = min(options.rows, 64) if options.quick else options.rows
    runs, progress = by_task("--run", options.run), Progress()
    loaded = {name: pool_of(name, options, rows) for name in tasks}  # what is too small is told before any training
    cells: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    without: dict[str, str] = {}
    ledger = Ledger(options.folder / "ledger.sqlite")
    try:
        for name, (task, pool) in loaded.items():
            valid = task.valid[: 20 if options.quick else options.valid_rows or None]
            picked, why_not = picks(names, pool, task, seeds, rows, ledger, options.folder, runs.get(name))
            without |= {f"{curator} on {name}": why for curator, why in why_not.items()}
            for (curator, seed), pick in picked.items():
                progress.note(f"{name}, {curator}, seed {seed}: {len(pick.rows)} rows")
                done = cell(options.folder, task, pick.rows, valid, seed, progress)
                beside = cell(options.folder, task, pick.random, valid, seed, progress)
                cells[name, curator, seed] = {**done, "random_hits": beside["hits"]}
    finally:
        ledger.close()
    figures, table = summarised(cells)
    print_rows(f"data_selection: rows chosen by each curator, {rows} at most, against as many random ones", table)
    print_rows("without a figure", [{"curator": name, "why": why} for name, why in without.items()])
    more = {"seeds": seeds, "rows": rows, "skewed": options.skewed, "without_figure": without}
    details = {"table": table, "student": STUDENT, "learner": LEARNER, **more}
    publish("data_selection: exact on valid, minus random", figures, PACKAGES, options.json, details)


def by_task(option: str, given: Sequence[str]) -> dict[str, Path]:
    """TASK=PATH pairs. Raises UserError where one is none."""
    paths = {}
    for pair in given:
        name, sign, path = pair.partition("=")
        if not sign or name not in TASKS:
            raise UserError(f"{option} {pair}: must be TASK=PATH", f"tasks: {', '.join(TASKS)}")
        paths[name] = Path(path)
    return paths


def pool_of(name: str, options: argparse.Namespace, rows: int) -> tuple[Task, list[Example]]:
    """A task and its pool. Raises UserError where a choice of `rows` would be most of it, and so hardly one."""
    task, pool = task_with_pool(name, options.data, 7, by_task("--pool", options.pool).get(name))
    pool = skewed(pool, 7) if options.skewed else pool
    if len(pool) < 2 * rows:
        told = f"{name}: {len(pool)} rows to choose {rows} from" + (" when skewed" if options.skewed else "")
        raise UserError(told, f"--rows {len(pool) // 2}, or a greater pool")
    return task, pool


def picks(
    names: Sequence[str],
    pool: Sequence[Example],
    task: Task,
    seeds: Sequence[int],
    rows: int,
    ledger: Ledger,
    folder: Path,
    finished: Path | None,
) -> tuple[dict[tuple[str, int], Pick], dict[str, str]]:
    """((curator, seed) -> what it chooses, curator -> why there is nothing to train on).

    The models that score are closed again before a student is trained.
    """
    made: dict[tuple[str, int], Pick] = {}
    why_not: dict[str, str] = {}
    with curator_bench(task, ledger, folder, seeds[0]) as bench:  # seeds share it, so that rows are scored once
        for name in names:
            others = pool
            if asks_somebody(name):
                if finished is None:
                    why_not[name] = "it asks a teacher or a person, and no finished run was given (--run)"
                    continue
                whole, others = rows_of_run(name, finished)
                chosen_by = {seed: drawn(whole, seed, min(rows, len(others))) for seed in seeds}
            else:
                chosen_by = {seed: chosen(name, pool, task, seed, rows, bench) for seed in seeds}
            found = {seed: Pick(picked, drawn(others, seed, len(picked))) for seed, picked in chosen_by.items()}
            if not all(pick.rows for pick in found.values()):
                why_not[name] = "it leaves no row"
            elif all(content_of(pick.rows) == content_of(pick.random) for pick in found.values()):
                why_not[name] = "same rows as random"
            else:
                made |= {(name, seed): pick for seed, pick in found.items()}
    return made, why_not


def content_of(rows: Sequence[Example]) -> list[Any]:
    """What a student learns of the rows: messages, calls and words."""
    return [
        [
            [dict(message) for message in row.request.messages],
            [call.to_json() for call in row.answer.calls],
            row.answer.text,
        ]
        for row in rows
        if row.answer is not None
    ]


def cell(
    folder: Path, task: Task, rows: Sequence[Example], valid: Sequence[Example], seed: int, progress: Progress
) -> Mapping[str, Any]:
    """A training and its measurement, from its file where it was done before."""
    asked = [row.request.id for row in valid]
    path = folder / "cells" / f"{hash_of([task.name, content_of(rows), asked, seed, LEARNER, FORMAT, STUDENT])}.json"
    if path.is_file():
        done: Mapping[str, Any] = read_json(path)
        return done
    began = time.perf_counter()
    hits = trained_and_measured(task, rows, valid, seed, progress)
    result = {"task": task.name, "seed": seed, "rows": len(rows), "seconds": time.perf_counter() - began, "hits": hits}
    write_json(path, result)
    return result


def trained_and_measured(
    task: Task, rows: Sequence[Example], valid: Sequence[Example], seed: int, progress: Progress
) -> list[bool]:
    """Per row of valid whether the student, trained on `rows`, answers it exactly."""
    # torch is imported where a student is really trained: finished cells are read without it.
    from supertiny.engines._huggingface import huggingface_folder
    from supertiny.engines._torch_engine import TorchEngine
    from supertiny.engines.torch import Torch
    from supertiny.formats._answerer import ModelAnswerer
    from supertiny.training.lessons import encode_lessons
    from supertiny.training.pupil import Pupil

    form = build("formats", FORMAT)
    base = huggingface_folder(STUDENT, "student")
    pupil = Pupil.open(base)
    lessons = encode_lessons(rows, form, task.tools, pupil.tokenizer, 512)
    learner = build("learners", LEARNER)
    with progress.task("training", len(lessons) * learner.passes / learner.rows, "steps") as tick:
        for _ in learner.fit(pupil, lessons, seed):
            tick(1)
    pupil.model.eval()
    engine = TorchEngine(Torch(), base, "pupil", pupil.model, pupil.tokenizer)
    answerer = ModelAnswerer("pupil", engine, form, task.tools, constrained=False)
    answers = answerer.answer([row.request for row in valid])
    gold = [row.answer.calls if row.answer else () for row in valid]
    return [exact(a.calls, g, task.tool_map) for a, g in zip(answers, gold, strict=True)]


def summarised(cells: Cells) -> tuple[list[tuple[str, str, float]], list[dict[str, Any]]]:
    """(figures: a curator's mean difference from random, in all and by task; two lines per task and curator)."""
    seeds = sorted({seed for _, _, seed in cells})
    figures, table = [], []
    for name in dict.fromkeys(name for _, name, _ in cells):
        pooled: list[float] = []
        for task in dict.fromkeys(task for task, other, _ in cells if other == name):
            by_row = differences(cells, task, name, seeds)
            pooled += by_row
            difference, low, high = paired_bootstrap(by_row, [0.0] * len(by_row), seed=0)
            table.append(_line(cells, task, name, "random_hits", seeds))
            line = _line(cells, task, name, "hits", seeds)
            table.append({**line, "minus_random": difference, "low": low, "high": high})
            figures.append((f"{name}_{task}", "exact minus random's, on this task", difference))
        mean, low, high = paired_bootstrap(pooled, [0.0] * len(pooled), seed=0)
        figures += [
            (name, "exact minus random's, mean over tasks and seeds", mean),
            (f"{name}_low", "lower end of its 95 % interval over rows", low),
            (f"{name}_high", "upper end", high),
            (f"{name}_n", "rows of valid", float(len(pooled))),
        ]
    return figures, table


def differences(cells: Cells, task: str, name: str, seeds: Sequence[int]) -> list[float]:
    """Per row of valid, the share of seeds in which the curator's student is right minus that of random's."""
    own, beside = (_by_row(cells, task, name, what, seeds) for what in ("hits", "random_hits"))
    return [left - right for left, right in zip(own, beside, strict=True)]


def _by_row(cells: Cells, task: str, name: str, what: str, seeds: Sequence[int]) -> list[float]:
    """Per row of valid, the share of seeds in which it is answered exactly."""
    per_seed = [cells[task, name, seed][what] for seed in seeds]
    return [sum(row) / len(seeds) for row in zip(*per_seed, strict=True)]


def _line(cells: Cells, task: str, name: str, what: str, seeds: Sequence[int]) -> dict[str, Any]:
    """A line of the table; its interval is over rows, each with its mean over seeds: seeds answer the same rows."""
    by_row = _by_row(cells, task, name, what, seeds)
    share, low, high = paired_bootstrap(by_row, [0.0] * len(by_row), seed=0)
    by_seed = [sum(cells[task, name, seed][what]) / len(by_row) for seed in seeds]
    rows = " ".join(dict.fromkeys(str(cells[task, name, seed]["rows"]) for seed in seeds))
    return {
        "task": task, "curator": name if what == "hits" else f"{RANDOM}, for {name}", "rows": rows,
        "exact": share, "exact_low": low, "exact_high": high,
        "by_seed": " ".join(f"{share:.3f}" for share in by_seed), "n": len(by_row), "seeds": len(seeds),
    }  # fmt: skip


if __name__ == "__main__":
    main()
