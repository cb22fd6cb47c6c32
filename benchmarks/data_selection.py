"""Selected rows against as many random ones: the student trained on 400 rows of each curator's choice.

Every cell (task, curator, seed) is a training from the base model and a measurement on valid; a finished cell is a file
and is not done again, and curators that choose the same rows share one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._selecting import RANDOM, ROWS, TASKS, chosen, curator_bench, selecting_curators, skewed, task_with_pool
from benchmarks._table import arguments, print_rows, publish
from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, read_json, write_json
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.records import Example
from supertiny.core.scoring import exact, paired_bootstrap, wilson_interval
from supertiny.core.task import Task

STUDENT = "smollm2-135m-instruct-q4_1"
LEARNER = {"method": "imitate", "passes": 3, "rows": 16, "learning_rate": 3e-4}
FORMAT = "compact"
VALID_ROWS = 200
PACKAGES = ["supertiny", "torch", "transformers", "scikit-learn", "openvino-genai"]
Cells = Mapping[tuple[str, str, int], Mapping[str, Any]]  # (task, curator, seed) -> {"hits", "rows", "seconds"}


def main() -> None:
    options = parser().parse_args()
    try:
        run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def parser() -> argparse.ArgumentParser:
    made = arguments(__doc__.splitlines()[0], "data_selection")
    made.add_argument("--task", choices=TASKS, action="append", help="this task alone; may be given again")
    made.add_argument("--curators", nargs="+", default=[], metavar="NAME", help="these alone (default: all that can)")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    made.add_argument("--rows", type=int, default=ROWS, help="rows to train on")
    made.add_argument("--valid-rows", type=int, default=VALID_ROWS, help="rows of valid to measure on; 0 is all")
    made.add_argument("--data", type=Path, help="folder above snips (default: ../shared/data)")
    made.add_argument(
        "--pool", nargs="+", default=[], metavar="TASK=FILE", help="a run's prototype/pool.jsonl instead of gold labels"
    )
    made.add_argument("--skewed", action="store_true", help="half of each pool, uneven and repeating, as logs may be")
    made.add_argument("--folder", type=Path, default=Path("runs/benchmarks/data_selection"), help="of finished cells")
    return made


def run(options: argparse.Namespace) -> None:
    tasks = options.task or list(TASKS)
    names = [RANDOM, *selecting_curators(options.curators)]
    seeds = options.seeds[:1] if options.quick else options.seeds
    rows = min(options.rows, 64) if options.quick else options.rows
    pools = pool_files(options.pool)
    progress = Progress()
    cells: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    ledger = Ledger(options.folder / "ledger.sqlite")
    try:
        for name in tasks:
            task, pool = task_with_pool(name, options.data, 7, pools.get(name))
            pool = skewed(pool, 7) if options.skewed else pool
            valid = task.valid[: 20 if options.quick else options.valid_rows or None]
            picked = picks(names, pool, task, seeds, rows, ledger, options.folder)
            for (curator, seed), picked_rows in picked.items():
                progress.note(f"{name}, {curator}, seed {seed}: {len(picked_rows)} rows")
                cells[name, curator, seed] = cell(options.folder, task, picked_rows, valid, seed, progress)
    finally:
        ledger.close()
    figures, table = summarised(cells)
    print_rows(f"data_selection: {rows} rows chosen by each curator against {rows} random ones", table)
    more = {"seeds": seeds, "rows": rows, "skewed": options.skewed}
    details = {"table": table, "student": STUDENT, "learner": LEARNER, **more}
    publish("data_selection: exact on valid, minus random", figures, PACKAGES, options.json, details)


def pool_files(given: Sequence[str]) -> dict[str, Path]:
    """TASK=FILE pairs. Raises UserError where one is none."""
    files = {}
    for pair in given:
        name, sign, path = pair.partition("=")
        if not sign or name not in TASKS:
            raise UserError(f"--pool {pair}: must be TASK=FILE", f"tasks: {', '.join(TASKS)}")
        files[name] = Path(path)
    return files


def picks(
    names: Sequence[str],
    pool: Sequence[Example],
    task: Task,
    seeds: Sequence[int],
    rows: int,
    ledger: Ledger,
    folder: Path,
) -> dict[tuple[str, int], list[Example]]:
    """(curator, seed) -> what it chooses; the models that score are closed again before a student is trained."""
    with curator_bench(task, ledger, folder, seeds[0]) as bench:  # seeds share it, so that rows are scored once
        return {(name, seed): chosen(name, pool, task, seed, rows, bench) for seed in seeds for name in names}


def cell(
    folder: Path, task: Task, rows: Sequence[Example], valid: Sequence[Example], seed: int, progress: Progress
) -> Mapping[str, Any]:
    """A training and its measurement, from its file where it was done before."""
    content = [
        [[dict(message) for message in row.request.messages], [call.to_json() for call in row.answer.calls]]
        for row in rows
        if row.answer is not None
    ]
    asked = [row.request.id for row in valid]
    path = folder / "cells" / f"{hash_of([task.name, content, asked, seed, LEARNER, FORMAT, STUDENT])}.json"
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
    from supertiny.engines._torch_engine import TorchEngine
    from supertiny.engines.torch import Torch
    from supertiny.formats._answerer import ModelAnswerer
    from supertiny.training.lessons import encode_lessons
    from supertiny.training.pupil import Pupil
    from supertiny.transfer.stage import open_base

    form = build("formats", FORMAT)
    base = open_base(STUDENT)
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
    """(figures: a curator's mean difference from random, in all and by task; a line per task and curator)."""
    tasks = list(dict.fromkeys(task for task, _, _ in cells))
    seeds = sorted({seed for _, _, seed in cells})
    names = [name for name in dict.fromkeys(name for _, name, _ in cells) if name != RANDOM]
    figures, table = [], []
    for task in tasks:
        hits = [hit for seed in seeds for hit in cells[task, RANDOM, seed]["hits"]]
        table.append(_line(task, RANDOM, hits, cells, seeds))
        figures.append((f"{task}_random_exact", "as many random rows", sum(hits) / len(hits)))
    for name in names:
        pooled: list[float] = []
        for task in tasks:
            by_row = differences(cells, task, name, seeds)
            pooled += by_row
            difference, low, high = paired_bootstrap(by_row, [0.0] * len(by_row), seed=0)
            hits = [hit for seed in seeds for hit in cells[task, name, seed]["hits"]]
            line = _line(task, name, hits, cells, seeds)
            table.append({**line, "minus_random": difference, "low": low, "high": high})
            figures.append((f"{name}_{task}", "the same, on this task", difference))
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
    per_seed = [
        [float(a) - float(b) for a, b in zip(cells[task, name, s]["hits"], cells[task, RANDOM, s]["hits"], strict=True)]
        for s in seeds
    ]
    return [sum(row) / len(seeds) for row in zip(*per_seed, strict=True)]


def _line(task: str, name: str, hits: Sequence[bool], cells: Cells, seeds: Sequence[int]) -> dict[str, Any]:
    by_seed = [sum(cells[task, name, s]["hits"]) / len(cells[task, name, s]["hits"]) for s in seeds]
    low, high = wilson_interval(sum(hits), len(hits))
    return {
        "task": task, "curator": name, "rows": cells[task, name, seeds[0]]["rows"],
        "exact": sum(hits) / len(hits), "exact_low": low, "exact_high": high,
        "by_seed": " ".join(f"{share:.3f}" for share in by_seed), "n": len(hits) // len(seeds), "seeds": len(seeds),
    }  # fmt: skip


if __name__ == "__main__":
    main()
