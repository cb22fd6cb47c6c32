"""Pools of rows to select from, the curators, and what each of them chooses."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._data import folder_of, snips_task
from supertiny.core.errors import UserError, nearest_word
from supertiny.core.files import read_rows
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build, cards
from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Answer, Example, Request
from supertiny.core.task import Task, load_task
from supertiny.prototype.bench import Bench, Shelf
from supertiny.prototype.curators._bench import CuratorBench

TASKS = ("smart_home", "snips")
ROWS = 400
SNIPS_POOL = 1600
REPEATED_SHARE = 0.25  # of a skewed pool: rows that were asked before, word for word
OUT_OF_REACH = {"live_teacher", "person"}  # what a curator may need and this benchmark has in finished runs alone
_EXAMPLES = Path(__file__).parents[1] / "examples"


def known_curators(given: Sequence[str] = ()) -> list[str]:
    """The names that were asked for, or those of all curators. Raises UserError for one that is none."""
    known = cards("curators")
    for name in given:
        if name not in known:
            raise UserError(f"curators has no method {name!r}", nearest_word(name, known))
    return list(given) or list(known)


def asks_somebody(name: str) -> bool:
    """Whether a curator needs a teacher or a person: its rows are those of a finished run."""
    return bool(OUT_OF_REACH & set(getattr(build("curators", name), "needs", ())))


def task_with_pool(
    name: str, data: Path | None, seed: int, teacher_pool: Path | None = None
) -> tuple[Task, list[Example]]:
    """A task, and the rows to select from, as they come: gold as labels, or a run's pool.jsonl with its teacher's."""
    if name == "smart_home":
        task = load_task(_EXAMPLES / name)
    else:
        task = snips_task(folder_of("snips", data), 200, seed, pool=SNIPS_POOL)
    if teacher_pool is not None:
        rows = [Example.from_json(row) for row in read_rows(teacher_pool)]
        return task, [row for row in rows if row.answer is not None and row.answer.readable]
    known = {row.request.id: row.request for row in task.unlabelled}
    return task, [_row(known[id], Answer(calls), task) for id, calls in task.pool_gold.items() if id in known]


def _row(request: Request, answer: Answer, task: Task) -> Example:
    verdict = task.verify(request, answer.calls)
    return Example(request, answer, verdict, {"source": "pool", "by": "gold"})


def skewed(rows: Sequence[Example], seed: int) -> list[Example]:
    """Half as many rows, whose functions are asked for as 1, 1/2, 1/3 ... of the first, a quarter of them repeated.

    The greatest group is the first. Where a group is too small for its share, all are fewer: no more rows are repeated.
    """
    generator = random.Random(seed)
    groups: dict[str, list[Example]] = {}
    for row in rows:
        groups.setdefault(row.answer.calls[0].tool if row.answer and row.answer.calls else "", []).append(row)
    ranked = sorted(groups.values(), key=len, reverse=True)
    parts = sum(1 / (rank + 1) for rank in range(len(ranked))) / (1 - REPEATED_SHARE)
    first = min([len(rows) // 2 / parts, *(len(group) * (rank + 1) for rank, group in enumerate(ranked))])
    taken: list[Example] = []
    for rank, group in enumerate(ranked):
        taken += generator.sample(group, min(len(group), round(first / (rank + 1))))
    again = generator.choices(taken, k=round(first * parts) - len(taken))
    taken += [
        replace(row, request=replace(row.request, id=f"{row.request.id}/again-{n}")) for n, row in enumerate(again)
    ]
    generator.shuffle(taken)
    return taken


def rows_of_run(name: str, folder: Path) -> tuple[list[Example], list[Example]]:
    """(rows that a finished run's student learns from, those of them that the curator neither made nor changed).

    Labelled rows, which a curator leaves alone, are in neither. Raises UserError where the run has no such file.
    """
    path = folder / "prototype" / "train.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} has no prototype/train.jsonl", "name the folder of a run whose prototype is done")
    rows = [row for row in map(Example.from_json, read_rows(path)) if row.provenance.get("source") != "labelled"]
    notes = [(row.provenance.get("made_by"), *row.provenance.get("changed_by", ())) for row in rows]
    return rows, [row for row, by in zip(rows, notes, strict=True) if name not in by]


def block_of(name: str, rows: int) -> dict[str, Any]:
    """The curator's settings: its own, but for the number of rows where it can be told one."""
    settings: dict[str, Any] = {"method": name}
    if "rows" in {field.name for field in fields(cards("curators")[name].load())}:
        settings["rows"] = rows
    return settings


def chosen(
    name: str, pool: Sequence[Example], task: Task, seed: int, rows: int, bench: CuratorBench | None = None
) -> list[Example]:
    """The rows that a curator keeps, or makes; where they are more than `rows`, the first in an order by seed."""
    curator = build("curators", block_of(name, rows))
    more: Mapping[str, Any] = {"bench": bench} if getattr(curator, "needs", ()) else {}
    kept = curator.curate(list(pool), task, seed, **more)
    return drawn(kept, seed, rows)


def drawn(rows: Sequence[Example], seed: int, count: int) -> list[Example]:
    """The first `count` in an order that seed and id alone decide."""
    return sorted(rows, key=lambda row: random.Random(f"{seed} {row.request.id}").random())[:count]


@contextmanager
def curator_bench(task: Task, ledger: Ledger, folder: Path, seed: int) -> Iterator[CuratorBench]:
    """What a curator that scores rows is handed: small models that score, and no teacher."""
    nobody: Any = None
    with closing(Shelf()) as shelf:
        wrap = partial(ledger.wrap, purpose="scores for curators")
        form, near = build("formats", "compact"), NearestExamples(task.labelled)
        teacher = Bench(nobody, task, form, near, seed, wrap=wrap, shelf=shelf)
        yield CuratorBench(teacher, _no_answer, folder, "data_selection")


def _no_answer(requests: Sequence[Request]) -> list[Answer]:
    raise AssertionError("a curator that asks a teacher has no place here")
