"""Pools of rows to select from, the curators that can select, and what each of them chooses."""

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
RANDOM = "random"
ROWS = 400
SNIPS_POOL = 1600
REPEATED_SHARE = 0.25  # of a skewed pool: rows that were asked before, word for word
OUT_OF_REACH = {"live_teacher", "person"}  # what a curator may need and this benchmark does not have
_EXAMPLES = Path(__file__).parents[1] / "examples"


def selecting_curators(given: Sequence[str] = ()) -> list[str]:
    """Names of the curators that need neither a teacher nor a person, or those that were asked for by name."""
    known = cards("curators")
    for name in given:
        if name not in known:
            raise UserError(f"curators has no method {name!r}", nearest_word(name, known))
    able = [name for name in known if not OUT_OF_REACH & set(getattr(build("curators", name), "needs", ()))]
    for name in given:
        if name not in able:
            raise UserError(f"{name} needs a teacher or a person", f"known here: {', '.join(able)}")
    return list(given) or able


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
    """Half as many rows, whose functions are asked for as 1, 1/2, 1/3 ... of the first, a quarter of them repeated."""
    generator = random.Random(seed)
    groups: dict[str, list[Example]] = {}
    for row in rows:
        groups.setdefault(row.answer.calls[0].tool if row.answer and row.answer.calls else "", []).append(row)
    names = sorted(groups)
    generator.shuffle(names)
    count = len(rows) // 2
    share = count * (1 - REPEATED_SHARE) / sum(1 / (rank + 1) for rank in range(len(names)))
    drawn: list[Example] = []
    for rank, name in enumerate(names):
        drawn += generator.sample(groups[name], min(len(groups[name]), round(share / (rank + 1))))
    again = generator.choices(drawn, k=count - len(drawn))
    drawn += [
        replace(row, request=replace(row.request, id=f"{row.request.id}/again-{n}")) for n, row in enumerate(again)
    ]
    generator.shuffle(drawn)
    return drawn


def block_of(name: str, rows: int) -> dict[str, Any]:
    """The curator's settings: its own, but for the number of rows where it can be told one."""
    settings: dict[str, Any] = {"method": name}
    if "rows" in {field.name for field in fields(cards("curators")[name].load())}:
        settings["rows"] = rows
    return settings


def chosen(
    name: str, pool: Sequence[Example], task: Task, seed: int, rows: int, bench: CuratorBench | None = None
) -> list[Example]:
    """The rows that a curator keeps, or makes; where they are more than `rows`, the first in an order by seed.

    The order is the same for all curators and for `random`, so that they differ by what they left out alone.
    """
    if name == RANDOM:
        kept = list(pool)
    else:
        curator = build("curators", block_of(name, rows))
        more: Mapping[str, Any] = {"bench": bench} if getattr(curator, "needs", ()) else {}
        kept = curator.curate(list(pool), task, seed, **more)
    return sorted(kept, key=lambda row: random.Random(f"{seed} {row.request.id}").random())[:rows]


@contextmanager
def curator_bench(task: Task, ledger: Ledger, folder: Path, seed: int) -> Iterator[CuratorBench]:
    """What a curator that scores rows is handed: small models that score, and no teacher."""
    nobody: Any = None
    with closing(Shelf()) as shelf:
        wrap = partial(ledger.wrap, purpose="scores for curators")
        form, near = build("formats", "compact"), NearestExamples(task.labelled)
        teacher = Bench(nobody, task, form, near, seed, wrap=wrap, shelf=shelf)
        yield CuratorBench(teacher, _no_answer, folder)


def _no_answer(requests: Sequence[Request]) -> list[Answer]:
    raise AssertionError("a curator that asks a teacher has no place here")
