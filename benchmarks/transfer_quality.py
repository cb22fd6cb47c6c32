"""What each way of teaching buys: floors, the teacher, imitation, and what comes after it, on SNIPS and the smart home.

Students learn from the labelled rows and from a teacher's answers to a pool, and answer valid greedily, without a
grammar. Valid is cut in two halves by a hash: which step of a training is taken, which rate, which arm is the best,
is chosen on one half and reported on the other, and the other way round, so that all rows are reported and none has
chosen. Every cell is one training; a finished cell is a file and is not done again, an interrupted one goes on from its
checkpoint. The teacher's answers stand in FOLDER/TASK; --recorded takes those of another machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._arms import ARMS, BY_NAME, STUDENT, Arm, Place, Results, measured, needed, wanted
from benchmarks._families import Made, adapters, check_methods, divergences
from benchmarks._halves import SIDES, halves
from benchmarks._measuring import Row
from benchmarks._table import arguments, mistakes_told, print_rows, publish
from benchmarks._teachers import ENGINES, KINDS, TASKS, task_of, taught, worth_of
from supertiny.core.errors import UserError
from supertiny.core.progress import Progress
from supertiny.core.scoring import paired_bootstrap, wilson_interval

PARTS = ("arms", "divergences", "adapters")
QUICK_ROWS = 24
PACKAGES = ["supertiny", "torch", "transformers", "peft", "scikit-learn", "openvino-genai"]
AFTER = "verified"  # what every other arm is held against
# Among which the best is chosen, with `AFTER`.
RIVALS = ("unverified", "substitute", "reject", "distil", "reinforce", "hybrid")


def main() -> None:
    options = parser().parse_args()
    with mistakes_told():
        run(options)


def parser() -> argparse.ArgumentParser:
    made = arguments(__doc__.splitlines()[0], "transfer_quality")
    made.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    made.add_argument("--arms", nargs="+", choices=list(BY_NAME), default=[], help="these, and what they are built on")
    made.add_argument(
        "--seeds", type=lambda given: [int(seed) for seed in given.split(",")], default=[1, 2, 3], metavar="1,2,3"
    )
    made.add_argument("--part", nargs="+", choices=PARTS, help="these alone (default: all; with --quick the arms)")
    made.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="divergences, adapters (default: all)")
    made.add_argument("--folder", type=Path, default=Path("runs/benchmarks/transfer_quality"), help="of finished cells")
    made.add_argument("--teacher", choices=KINDS, default=KINDS[0], help="small: SNIPS without the large model")
    made.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="of the teacher's model; answers that stand in FOLDER are read, whoever gave them",
    )
    made.add_argument("--recorded", type=Path, metavar="FOLDER", help="of TASK/pool.jsonl and TASK/valid.jsonl")
    made.add_argument("--rows", type=int, help="labelled rows, rows of the pool and of valid, each")
    made.add_argument("--data", type=Path, help="folder above snips (default: ../shared/data)")
    made.add_argument("--student", default=STUDENT, help="a model of the catalogue, or a Hugging Face folder")
    return made


def run(options: argparse.Namespace) -> None:
    parts = options.part or (PARTS[:1] if options.quick else PARTS)
    check_methods(options.methods, [part for part in parts if part != "arms"])
    arms = wanted(options.arms) if "arms" in parts else []
    figures: list[Row] = []
    tables: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    without: dict[str, str] = {}
    teachers: dict[str, Any] = {}
    places = [place_of(name, options, parts, arms) for name in dict.fromkeys(options.task)]
    for place in places:
        name = place.task.name
        teachers[name] = {
            "unverified": worth_of(place.task, place.taught.unverified),
            "verified": worth_of(place.task, place.taught.verified),
        }
        for part in parts:
            made, table, why = _PARTS[part](place, arms)
            figures += made
            tables[part] += table
            without |= {f"{one} on {name}": reason for one, reason in why.items()}
    for part, table in tables.items():
        print_rows(f"transfer_quality: {part}", table)
    print_rows("without a figure", [{"what": name, "why": why} for name, why in without.items()])
    details = {
        "tables": tables,
        "without_figure": without,
        "teacher_on_the_pool": teachers,
        "teacher": f"recorded in {options.recorded}" if options.recorded else options.teacher,
        "student": options.student,
        "seeds": places[0].seeds,
        "learners": {arm.name: dict(arm.learner) for arm in ARMS if arm.learner},
        "quick": options.quick,
        "rows": options.rows,
    }
    publish("transfer_quality: exact on valid", figures, PACKAGES, options.json, details)


def place_of(name: str, options: argparse.Namespace, parts: Sequence[str], arms: Sequence[Arm]) -> Place:
    """The task with its teacher's answers: all that is missing is told, or asked for, before anybody is taught."""
    if options.rows is not None and options.rows < 2:
        raise UserError(f"--rows {options.rows}: valid has two halves", "2 at least")
    progress = Progress()
    task = task_of(name, options.data, options.rows or (QUICK_ROWS if options.quick else None))
    asked = ["pool"] if set(parts) - {"arms"} else []
    answers = taught(
        task,
        list(dict.fromkeys([*needed(arms), *asked])),
        options.teacher,
        options.folder,
        options.recorded,
        progress,
        options.engine,
    )
    seeds = list(dict.fromkeys(options.seeds[:1] if options.quick else options.seeds))
    return Place(task, answers, seeds, options.folder, options.student, options.quick, progress, options.methods)


def compared(place: Place, arms: Sequence[Arm]) -> Made:
    """(figures of each arm, a table, arm -> why it has none)."""
    results, without = measured(place, arms)
    name = place.task.name
    figures: list[Row] = []
    table = [line(place, arm, results) for arm in results]
    for row in table:
        figure = f"{name}_{row['arm']}_exact"
        figures += [
            (figure, "exact on valid, mean over seeds", row["exact"]),
            (f"{figure}_low", "lower end of its 95 % interval over rows", row["low"]),
            (f"{figure}_high", "upper end", row["high"]),
            (f"{figure}_n", "rows of valid", float(row["n"])),
        ]
    for other in (AFTER, "teacher"):
        if other in results and AFTER in results:
            best = best_hits(place, results)
            difference, low, high = paired_bootstrap(best, by_row(results, other), seed=0)
            figure = f"{name}_best_minus_{other}"
            figures += [
                (figure, "the arm that is best on one half, on the other half", difference),
                (f"{figure}_low", "lower end of its 95 % interval over rows", low),
                (f"{figure}_high", "upper end", high),
            ]
    return figures, table, without


def line(place: Place, arm: str, results: Results) -> dict[str, Any]:
    """A line of the table; intervals are over rows, each with its mean over seeds: seeds answer the same rows."""
    shares, ones = by_row(results, arm), list(results[arm].values())
    exact = sum(shares) / len(shares)
    low, high = wilson_interval(round(sum(shares)), len(shares))
    told: dict[str, Any] = {
        "task": place.task.name, "arm": arm, "exact": exact, "low": min(low, exact), "high": max(high, exact),
        "n": len(shares), "choosing_exact": mean([one.choosing_exact for one in ones]),
        "slot_f1": mean([one.slot_f1 for one in ones]),
        "by_seed": " ".join(f"{one.exact:.3f} ({spread(one.hits)})" for one in ones),
    }  # fmt: skip
    if AFTER in results and arm != AFTER:
        difference, low, high = paired_bootstrap(shares, by_row(results, AFTER), seed=0)
        told |= {"minus_verified": difference, "from": low, "to": high}
    for key in ("lessons", "seconds", "tokens", "peak_gb"):
        known = [float(one.more[key]) for one in ones if key in one.more]
        told |= {key: mean(known)} if known else {}
    return told


def spread(hits: Sequence[bool]) -> str:
    low, high = wilson_interval(sum(hits), len(hits))
    return f"{low:.3f} to {high:.3f}"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def by_row(results: Results, arm: str) -> list[float]:
    """Per row of valid, the share of seeds in which it is answered exactly."""
    return [sum(row) / len(row) for row in zip(*(one.hits for one in results[arm].values()), strict=True)]


def best_hits(place: Place, results: Results) -> list[float]:
    """Per row the share of the arm that is best on the rows of the other half; the earlier arm of equal ones."""
    rows = {arm: by_row(results, arm) for arm in (AFTER, *RIVALS) if arm in results}
    best = {}
    for side in SIDES:
        worth = {arm: mean([one.choosing[side] for one in results[arm].values()]) for arm in rows}
        best[side] = max(worth, key=worth.__getitem__)
    return [rows[best[side]][row] for row, side in enumerate(halves(place.task.valid))]


_PARTS: dict[str, Callable[[Place, Sequence[Arm]], Made]] = {
    "arms": compared,
    "divergences": lambda place, arms: divergences(place),
    "adapters": lambda place, arms: adapters(place),
}

if __name__ == "__main__":
    main()
