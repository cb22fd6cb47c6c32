"""How good a pipeline the teacher's model can be: SNIPS, BANKING77 and BFCL, against one plain prompt.

Each pipeline is a recipe of the library's steps. Every model call goes through a ledger, so that an interrupted
benchmark goes on where it was, seconds included. What a pipeline learns (weights, thresholds, which of several steps)
it learns from labelled rows, never from the rows that it is measured on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks._banking import banking
from benchmarks._bfcl import INSTALL, bfcl, checker_python
from benchmarks._data import folder_of
from benchmarks._measuring import Room, Row
from benchmarks._snips import WITHIN, snips
from benchmarks._table import arguments, mistakes_told, print_rows, publish
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build

MODEL = "qwen2.5-coder-1.5b-instruct-q4_k_m"
PARTS = ("snips", "banking77", "bfcl")
PACKAGES = ["supertiny", "openvino", "openvino-genai", "scikit-learn", "numpy", "bfcl-eval"]


def main() -> None:
    parser = options()
    chosen = parser.parse_args()
    with mistakes_told():
        run(chosen)


def options() -> argparse.ArgumentParser:
    parser = arguments(__doc__.splitlines()[0], "prototype_quality")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this part alone; may be given again")
    parser.add_argument("--rows", type=int, help="rows of every part (of each category in bfcl); 0 is all")
    parser.add_argument("--data", type=Path, help="folder above snips, banking77, bfcl (default: ../shared/data)")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/prototype_quality"), help="of the ledger")
    parser.add_argument("--seed", type=int, default=7, help="of the draw of labelled and held-out rows")
    parser.add_argument(
        "--pipeline", choices=["auto", *WITHIN], default="auto", help="of SNIPS; auto is the best on labelled rows"
    )
    parser.add_argument("--bfcl-python", type=Path, metavar="PYTHON", help=f"one that has bfcl-eval: {INSTALL}")
    return parser


def run(chosen: argparse.Namespace) -> None:
    parts = chosen.part or PARTS
    for part in parts:  # what is missing is said before anything is spent
        folder_of(part, chosen.data)
    if "bfcl" in parts:
        checker_python(chosen.bfcl_python)
    ledger = Ledger(chosen.folder / "ledger.sqlite")
    engine = build("engines", {"method": "openvino", "model": MODEL}).open()
    try:
        room = Room(engine, ledger, chosen.data, chosen.rows, chosen.quick, chosen.seed)
        figures, tables = measured(room, parts, chosen)
    finally:
        engine.close()
        ledger.close()
    for part, table in tables.items():
        print_rows(f"{part}: what each part adds", table)
    details = {
        "steps": tables,
        "model": MODEL,
        "seed": chosen.seed,
        "rows": chosen.rows,
        "quick": chosen.quick,
        "pipeline": chosen.pipeline,
    }
    publish(f"prototype_quality: {MODEL}", figures, PACKAGES, chosen.json, details)


def measured(room: Room, parts: Any, chosen: argparse.Namespace) -> tuple[list[Row], dict[str, list[dict[str, Any]]]]:
    """Figures of the parts, and a table of each."""
    work: Mapping[str, Callable[[Room], Any]] = {
        "snips": lambda room: snips(room, chosen.pipeline),
        "banking77": banking,
        "bfcl": lambda room: bfcl(room, chosen.bfcl_python),
    }
    figures: list[Row] = []
    tables = {}
    for part in parts:
        room.progress.note(f"{part}:")
        rows, tables[part] = work[part](room)
        figures += rows
    return figures, tables


if __name__ == "__main__":
    main()
