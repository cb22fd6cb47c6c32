"""A taught student in 4, 3 and 2 bits: our quantizers beside llama.cpp's types and llm-compressor, at equal bits.

The student is taught first (or given by --student): weights that come from a 4-bit file lie on its grid already. Each
way rounds the same matrices, with at most half a bit a weight for scales; embedding and head stay as they are for all.
What is measured are the values, read back into float32 in PyTorch: one engine for all, so that nothing but the rounding
differs. `exact` is on valid, without a grammar; perplexity is over the gold answers' tokens of valid, which nobody was
calibrated on. llama.cpp's types are rounded by its own library with an importance matrix of the same calibration rows,
and once more without (`_plain`). A finished cell is a file and is not done again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import _compress_jobs as jobs
from benchmarks._measuring import Row, shares
from benchmarks._selecting import TASKS
from benchmarks._table import arguments, mistakes_told, print_rows, publish
from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, read_json, sha256_of, write_json
from supertiny.core.progress import Progress
from supertiny.core.scoring import paired_bootstrap

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help does without
    from benchmarks._compressing import Exam
    from benchmarks._roundings import Way, Workshop
    from supertiny.core.records import Example
    from supertiny.core.task import Task

METHODS = ("rtn", "gptq", "hqq", "trit_planes", "bit_planes")
PACKAGES = ["supertiny", "torch", "transformers", "gguf", "llama-cpp-python", "numpy"]
# Ours on a grid of llama.cpp against its own rounding to the same type.
SAME_GRID = [(f"gptq_{kind}", f"llama_{kind}{end}") for kind in ("q4_0", "q4_1") for end in ("", "_plain")]
AT_EQUAL_BITS = [(f"gptq_{bits}", f"llmcompressor_gptq_{bits}") for bits in (4, 3, 2)]


def main() -> None:
    with mistakes_told():
        run(parser().parse_args())


def parser() -> argparse.ArgumentParser:
    made = arguments(__doc__.splitlines()[0], "quantize_quality")
    made.add_argument("--task", choices=TASKS, default="smart_home")
    made.add_argument("--student", type=Path, help="a taught student's folder (default: taught here, once)")
    made.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="NAME", help="of ours")
    made.add_argument("--rows", type=int, default=1000, help="gold rows that the student is taught with")
    made.add_argument("--calibration-rows", type=int, default=128, help="of these, drawn by seed")
    made.add_argument("--valid-rows", type=int, default=0, help="rows of valid to measure on; 0 is all")
    made.add_argument("--data", type=Path, help="folder above snips (default: ../shared/data)")
    made.add_argument("--rival-python", type=Path, metavar="PYTHON", help="one that has llm-compressor")
    made.add_argument("--folder", type=Path, default=Path("runs/benchmarks/quantize_quality"), help="of finished cells")
    return made


@dataclass(frozen=True)
class Cell:
    """A model that was rounded in one way, examined."""

    exam: Exam
    bits: float
    """True bits per weight of the rounded matrices."""
    seconds: float
    """That the rounding took."""


def run(options: argparse.Namespace) -> None:
    from benchmarks._compressing import task_and_gold

    task, gold = task_and_gold(options.task, options.data, 64 if options.quick else options.rows)
    valid = task.valid[: 20 if options.quick else options.valid_rows or None]
    progress, cells, missing = Progress(), dict[str, Cell](), dict[str, str]()
    rival = jobs.rival_python(options.rival_python)
    student = student_of(options, task, gold, progress)
    try:
        for way, work in planned(options, task, gold, student, rival, missing, progress):
            try:
                cells[way.name] = cell(options.folder, way, work, task, valid, progress)
            except UserError as error:  # such as a rival that fails: the others' figures stand
                missing[way.name] = str(error)
                progress.note(f"{way.name}: {error}")
    finally:  # a run takes long: what was measured before a stop is not lost
        if cells:
            told(options, cells, missing, task, len(gold))


def told(
    options: argparse.Namespace, cells: Mapping[str, Cell], missing: Mapping[str, str], task: Task, n: int
) -> None:
    figures, table = summarised(cells)
    print_rows(f"quantize_quality: {task.name}; embedding and head unquantized, read back into float32", table)
    print_rows("without a figure", [{"way": name, "why": why} for name, why in missing.items()])
    details = {
        "table": table, "without_figure": dict(missing), "task": task.name, "quick": options.quick,
        "student": str(options.student or f"taught here with {n} gold rows"), "embedding_and_head": "unquantized",
        "calibration_rows": options.calibration_rows, "scale_bits_at_most": 0.5,
    }  # fmt: skip
    publish("quantize_quality: exact on valid, perplexity of answers", figures, PACKAGES, options.json, details)


def student_of(options: argparse.Namespace, task: Task, gold: Sequence[Example], progress: Progress) -> Path:
    from benchmarks._compressing import LEARNER, taught

    if options.student is not None:
        if not (options.student / "config.json").is_file():
            raise UserError(f"--student {options.student} is no Hugging Face folder: it has no config.json")
        return Path(options.student)
    return taught(task, gold, {**LEARNER, "passes": 1} if options.quick else LEARNER, options.folder, progress)


def planned(
    options: argparse.Namespace,
    task: Task,
    gold: Sequence[Example],
    student: Path,
    rival: Path | None,
    missing: dict[str, str],
    progress: Progress,
) -> list[tuple[Way, Workshop]]:
    """All ways, each with what it needs; notes in `missing` why others have no figure."""
    from benchmarks._compressing import calibration_lessons, in_batches
    from benchmarks._llama_types import rounding
    from benchmarks._roundings import Workshop, importance_of, ways, widths_of
    from supertiny.training.pupil import Pupil

    pupil, library = Pupil.open(student, "float32"), rounding()
    lessons = calibration_lessons(gold, task, pupil, 16 if options.quick else options.calibration_rows)
    work = Workshop(student, in_batches(lessons, pupil.pad_id), [list(row.ids) for row in lessons], library, {}, rival)
    if library is None:
        missing["llama_*"] = "no importance matrix and no iq4_nl without llama-cpp-python: make benchmarks"
    else:
        with progress.task("importance matrix", len(pupil.model.model.layers), "blocks") as tick:
            work.importance = importance_of(pupil, work.calibration, lambda done, of: tick(1))
    if rival is None:
        missing["llmcompressor_gptq_*"] = f"{jobs.RIVAL} is not installed: {jobs.TO_MAKE}"
    missing["trit_planes_4, trit_planes_2"] = "two planes of trits are 3.2 bits; there are no others"
    return [
        (way, work) for way in ways(widths_of(pupil.model), options.methods, library is not None, rival is not None)
    ]


def cell(folder: Path, way: Way, work: Workshop, task: Task, valid: Sequence[Example], progress: Progress) -> Cell:
    """A way's rounding and its exam, from its file where it was done before."""
    from benchmarks._compressing import Exam, examined
    from supertiny.training.pupil import Pupil

    student = [sha256_of(path) for path in sorted(work.student.glob("*.safetensors"))]
    code = jobs.sources() if way.kind == "ours" else ""
    asked = [row.request.id for row in valid]
    # Llama.cpp's Python package rounds where its library is not there: to the same values, as far as is known.
    by = [way.kind == "llama" and work.library is not None, code]
    key = hash_of([way.name, dict(way.settings), student, task.name, task.hash, asked, work.rows, *by])
    path = folder / "cells" / f"{key}.json"
    if path.is_file():
        known = read_json(path)
        return Cell(Exam.from_json(known["exam"]), known["bits"], known["seconds"])
    pupil = Pupil.open(work.student, "float32")
    began = time.perf_counter()
    with progress.share(f"{way.name}: rounding") as advance:
        bits = work.rounded(way, pupil, advance)
    seconds = time.perf_counter() - began
    progress.note(f"{way.name}: {bits:.2f} bits, rounded in {seconds:.0f} s; answering {len(valid)} rows")
    exam = examined(pupil, task, valid)
    progress.note(f"  {sum(exam.hits) / len(valid):.3f} exact, perplexity {exam.perplexity:.4f}")
    write_json(path, {"way": way.name, "bits": bits, "seconds": seconds, "exam": exam.to_json()})
    return Cell(exam, bits, seconds)


def summarised(cells: Mapping[str, Cell]) -> tuple[list[Row], list[dict[str, Any]]]:
    """(figures, a line per way). The unquantized student is what all are held against."""
    figures: list[Row] = []
    table = []
    whole = cells.get("unquantized")
    for name, found in cells.items():
        exact = shares(f"exact_{name}", f"{name}: exact calls on valid", found.exam.hits)
        figures += [
            *exact,
            (f"perplexity_{name}", f"{name}: perplexity of gold answers' tokens on valid", found.exam.perplexity),
            (f"bits_{name}", f"{name}: bits per weight, scales included", found.bits),
        ]
        line: dict[str, Any] = {"way": name, "bits": found.bits}
        line |= dict(zip(("exact", "low", "high"), (value for _, _, value in exact), strict=False))
        line["n"] = len(found.exam.hits)
        if whole is not None and name != "unquantized":
            rows, beside = compared(name, found, "unquantized", whole)
            figures += rows[:3]
            line |= beside
        table.append({**line, "perplexity": found.exam.perplexity, "seconds": found.seconds})
    for left, right in (*SAME_GRID, *AT_EQUAL_BITS):
        if left in cells and right in cells:
            figures += compared(left, cells[left], right, cells[right])[0]
    return figures, table


def compared(name: str, cell: Cell, other: str, against: Cell) -> tuple[list[Row], dict[str, Any]]:
    """(figures of two ways on the same rows, their part of a table's line)."""
    from benchmarks._compressing import perplexity_ratio

    difference = paired_bootstrap(cell.exam.hits, against.exam.hits, seed=0)
    ratio = perplexity_ratio(cell.exam, against.exam)
    figures: list[Row] = []
    for sign, what, values in (
        ("minus", "exact, difference on the same rows", difference),
        ("perplexity_over", "perplexity, ratio: below 1 is better", ratio),
    ):
        title = f"{name}_{sign}_{other}"
        figures += [
            (title, f"{name} against {other}: {what}", values[0]),
            (f"{title}_low", "lower end of its 95 % interval", values[1]),
            (f"{title}_high", "upper end", values[2]),
        ]
    line = {"minus": difference[0], "minus_low": difference[1], "minus_high": difference[2]}
    return figures, {**line, "ppl_ratio": ratio[0], "ratio_low": ratio[1], "ratio_high": ratio[2]}


if __name__ == "__main__":
    main()
