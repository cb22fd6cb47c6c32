"""Seconds and peak memory of compressing a whole SmolLM2-135M, beside llm-compressor on the same rows.

`gptq` and `wanda`: all matrices of all blocks, on the same calibration rows and in the same precision as
llm-compressor; 4 bits in groups of 64, half of the weights. Each run is a process of its own; ours and the rival's
alternate, ratios are of neighbours (the rival's seconds over ours), and median, lowest and highest are told. Loading is
not timed; packing is. Peak memory is that of the whole process, from its start.
`dfloat11`: size of the packed weights over bfloat16's, whether every bit comes back, seconds to write and to read.
`planes`: signal-to-noise ratio of trit and bit planes on the matrices that the reference numbers were measured on.
A finished run is a file and is not done again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import _compress_jobs as jobs
from benchmarks._compress_jobs import Report
from benchmarks._measuring import Row
from benchmarks._selecting import TASKS
from benchmarks._table import arguments, mistakes_told, print_rows, publish
from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, read_json, write_json
from supertiny.core.progress import Progress

MODEL = "smollm2-135m-instruct-q4_1"
PACKAGES = ["supertiny", "torch", "transformers", "safetensors", "numpy"]
PARTS = ("gptq", "wanda", "dfloat11", "planes")
BITS, GROUP, SPARSITY = 4, 64, 0.5
PLANES_GROUP, HEIGHT, WIDTH = 64, 1536, 576  # of the matrices that the reference numbers are of
# Decibels of other implementations on such matrices, Gaussian or of Student's t with 4 degrees of freedom, group 64.
_RTN = {"method": "rtn", "zero": "integer"}
REFERENCES: Mapping[str, tuple[float, Mapping[str, Any]]] = {
    "rtn_2": (6.9, {**_RTN, "bits": 2}),
    "rtn_3": (14.3, {**_RTN, "bits": 3}),
    "rtn_4": (20.9, {**_RTN, "bits": 4}),
    "rtn_3_heavy": (11.9, {**_RTN, "bits": 3}),
    "trit_planes": (15.8, {"method": "trit_planes"}),
    "trit_planes_heavy": (13.8, {"method": "trit_planes"}),
    "bit_planes_2": (9.6, {"method": "bit_planes", "bits": 2}),
    "bit_planes_3": (14.8, {"method": "bit_planes", "bits": 3}),
    "bit_planes_4": (20.0, {"method": "bit_planes", "bits": 4}),
}


def main() -> None:
    with mistakes_told():
        run(parser().parse_args())


def parser() -> argparse.ArgumentParser:
    made = arguments(__doc__.splitlines()[0], "compress_speed")
    made.add_argument("--part", choices=PARTS, action="append", help="this part alone; may be given again")
    made.add_argument("--student", default=MODEL, help="a model of the catalogue or a Hugging Face folder")
    made.add_argument("--task", choices=TASKS, default="smart_home", help="whose gold rows calibrate")
    made.add_argument("--rows", type=int, default=128, help="calibration rows")
    made.add_argument("--repeats", type=int, default=3, help="runs of each side")
    made.add_argument("--blocks", type=int, default=0, help="the model's first ones alone; 0 is all")
    made.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    made.add_argument("--data", type=Path, help="folder above snips (default: ../shared/data)")
    made.add_argument("--rival-python", type=Path, metavar="PYTHON", help="one that has llm-compressor")
    made.add_argument("--folder", type=Path, default=Path("runs/benchmarks/compress_speed"), help="of finished runs")
    return made


def run(options: argparse.Namespace) -> None:
    from supertiny.engines._huggingface import huggingface_folder

    if options.quick:
        options.rows, options.repeats, options.blocks = min(options.rows, 16), 1, options.blocks or 2
    parts = options.part or PARTS
    rival = jobs.rival_python(options.rival_python) if {"gptq", "wanda"} & set(parts) else None
    model, progress = huggingface_folder(options.student, "--student"), Progress()
    rows: list[Row] = []
    details: dict[str, Any] = {"student": options.student, "blocks": options.blocks, "without_figure": {}}
    work: Mapping[str, Callable[[], list[Row]]] = {
        "gptq": lambda: speeds("gptq", model, rival, options, details, progress),
        "wanda": lambda: speeds("wanda", model, rival, options, details, progress),
        "dfloat11": lambda: lossless(model, progress),
        "planes": lambda: planes(details, progress),
    }
    try:
        for part in parts:
            rows += work[part]()
    finally:  # what was measured before one fails is not lost
        if rows:
            rows += peak(rows)
            why = [{"part": name, "why": words} for name, words in details["without_figure"].items()]
            print_rows("without a figure", why)
            publish(f"compress_speed: {options.student}", rows, PACKAGES, options.json, details)


def peak(rows: list[Row]) -> list[Row]:
    """The most that any of our runs has had."""
    known = [value for name, _, value in rows if name in ("gptq_peak_gb", "wanda_peak_gb")]
    return [("peak_gb", "ours: most memory of a run of gptq or wanda, all of the process", max(known))] if known else []


def speeds(
    kind: str, model: Path, rival: Path | None, options: argparse.Namespace, details: dict[str, Any], progress: Progress
) -> list[Row]:
    """Figures of gptq or wanda, ours and the rival's by turns."""
    from benchmarks._speed_jobs import ratios, with_spread

    job = job_of(kind, model, options)
    sides: dict[str, list[Report]] = {"": [], "llmcompressor_": []}
    for turn in range(options.repeats):
        progress.note(f"{kind}, run {turn + 1} of {options.repeats}: ours")
        sides[""].append(done(options.folder, job, turn, jobs.sources(), partial(jobs.ours, job)))
        if rival is not None:
            progress.note(f"  {sides[''][-1]['seconds']:.1f} s; {jobs.RIVAL}")
            try:
                theirs = done(options.folder, job, turn, str(rival), partial(jobs.rivals, job, rival))
                sides["llmcompressor_"].append(theirs)
            except UserError as error:  # ours stand all the same
                details["without_figure"][f"{jobs.RIVAL}, {kind}"], rival = str(error), None
    if not sides["llmcompressor_"]:
        hint = f"it is not installed: {jobs.TO_MAKE}"
        details["without_figure"].setdefault(f"{jobs.RIVAL}, {kind}", hint)
    what = f"{kind}, {options.blocks or 'all'} blocks, {len(job['rows'])} rows, {job['precision']}"
    rows: list[Row] = [(f"{kind}_tokens", f"{kind}: tokens of the calibration rows", float(sides[""][0]["tokens"]))]
    for side, reports in sides.items():
        if reports:
            who = "ours" if not side else jobs.RIVAL
            rows += with_spread(f"{side}{kind}_seconds", f"{who}: {what}", [one["seconds"] for one in reports])
            rows.append((f"{side}{kind}_peak_gb", f"{who}: most memory", max(one["peak_gb"] for one in reports)))
    if sides["llmcompressor_"]:
        details["versions_of_rival"] = sides["llmcompressor_"][0]["versions"]
        pairs = list(zip(sides["llmcompressor_"], sides[""], strict=False))
        their_seconds, own_seconds = ([one["seconds"] for one in side] for side in zip(*pairs, strict=True))
        rows += with_spread(f"{kind}_ratio", f"{jobs.RIVAL}'s seconds over ours", ratios(their_seconds, own_seconds))
    return rows


def job_of(kind: str, model: Path, options: argparse.Namespace) -> Report:
    """What both sides are asked to do, and with which rows."""
    from benchmarks._compressing import calibration_lessons, task_and_gold
    from supertiny.training.pupil import Pupil, resolved

    task, gold = task_and_gold(options.task, options.data, options.rows)
    lessons = calibration_lessons(gold, task, Pupil.open(model), options.rows)
    return {
        "kind": kind,
        "model": str(model.resolve()),
        "precision": str(resolved(options.precision)).removeprefix("torch."),
        "rows": [list(lesson.ids) for lesson in lessons],
        "bits": BITS,
        "group": GROUP,
        "sparsity": SPARSITY,
        "blocks": options.blocks,
        "weights": "",
    }


def done(folder: Path, job: Report, turn: int, by: str, work: Callable[[], Report]) -> Report:
    """A run's report, from its file where it was done before by the same code."""
    path = folder / "cells" / f"{hash_of([job, turn, by])}.json"
    if path.is_file():
        known: Report = read_json(path)
        return known
    report = work()
    write_json(path, report)
    return report


def lossless(model: Path, progress: Progress) -> list[Row]:
    """Figures of dfloat11 on the model's own bfloat16 weights."""
    import torch

    from supertiny.compress.exporters._student_files import tensors_of
    from supertiny.compress.exporters.dfloat11 import Dfloat11
    from supertiny.training.pupil import Pupil

    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "plain", Path(folder) / "packed"
        Pupil.open(model, "bfloat16").save(plain)
        progress.note("dfloat11: packing")
        began = time.perf_counter()
        told = Dfloat11().export(plain, packed)
        wrote = time.perf_counter()
        back = Dfloat11.read(packed)
        read = time.perf_counter()
        given = {name: get() for name, get in tensors_of(plain, read_json(plain / "config.json")).items()}
    same = [
        name in back
        and back[name].dtype == tensor.dtype == torch.bfloat16
        and torch.equal(back[name].view(torch.int16), tensor.view(torch.int16))
        for name, tensor in given.items()
    ]
    equal = back.keys() == given.keys() and all(same)
    size = sum(tensor.nbytes for tensor in given.values())
    return [
        ("dfloat11_ratio", f"bytes over those of {size / 1e6:.0f} MB of bfloat16 weights", told["ratio"]),
        ("dfloat11_equal", "1 where every bit of every tensor comes back", float(equal)),
        ("dfloat11_tensors", "tensors that were compared", float(len(same))),
        ("dfloat11_write_seconds", "to pack and write", wrote - began),
        ("dfloat11_read_seconds", "to read and unpack", read - wrote),
    ]


def planes(details: dict[str, Any], progress: Progress) -> list[Row]:
    """Signal-to-noise ratios in decibels beside the reference's."""
    from supertiny.core.methods import build

    progress.note("planes: trit and bit planes on random matrices")
    rows: list[Row] = []
    for name, (reference, block) in REFERENCES.items():
        matrix = random_matrix(heavy=name.endswith("_heavy"))
        packed = build("quantizers", {**block, "group": PLANES_GROUP}).quantize(matrix, None)
        found = decibels(matrix, packed.restored())
        what = f"{name.replace('_heavy', ', heavy tails')}: signal over noise, dB, {packed.bits_per_weight:.2f} bits"
        rows += [
            (f"{name}_snr", what, found),
            (f"{name}_snr_minus_reference", f"that minus the reference's {reference}", found - reference),
        ]
    details["snr_references"] = {name: reference for name, (reference, _) in REFERENCES.items()}
    return rows


def random_matrix(heavy: bool) -> Any:
    """(1536, 576) Gaussian numbers, or Student's t with 4 degrees of freedom."""
    import torch

    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(HEIGHT, WIDTH, generator=generator)
    if not heavy:
        return matrix
    squares = torch.randn(4, HEIGHT, WIDTH, generator=generator).square_().mean(dim=0)
    return matrix / squares.sqrt_()


def decibels(matrix: Any, rounded: Any) -> float:
    import torch

    return float(10 * torch.log10(matrix.square().sum() / (matrix - rounded).square().sum()))


if __name__ == "__main__":
    main()
