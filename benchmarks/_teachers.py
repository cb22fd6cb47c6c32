"""The teachers of transfer_quality: a task's best known pipeline answers its pool and valid, once, into files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks._data import folder_of, snips_task
from benchmarks._measuring import Room, answered
from benchmarks._snips import QUICK, known_as, stacked
from supertiny.core.errors import UserError
from supertiny.core.files import read_rows, write_rows
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.records import Example, Price
from supertiny.core.scoring import is_exact
from supertiny.core.task import Task, load_task

TASKS = ("snips", "smart_home")
KINDS = ("pipeline", "small")
ENGINES = ("openvino", "llama_cpp")  # the first where processors multiply bf16; the second has int8 products for all
PARTS = ("pool", "valid")
LABELLED, POOL = 200, 2_000
SEED = 7  # of the draw of SNIPS' labelled rows and pool
HOME = Path(__file__).parents[1] / "examples" / "smart_home"
MODEL = "qwen2.5-coder-1.5b-instruct-q4_k_m"


@dataclass(frozen=True)
class Taught:
    """A teacher's answers to the pool and to valid, in the order of the task's rows; a part nobody needs is empty."""

    pool: tuple[Example, ...] = ()
    valid: tuple[Example, ...] = ()

    @property
    def unverified(self) -> list[Example]:
        """Rows of the pool whose answer can be read."""
        return [row for row in self.pool if row.answer is not None and row.answer.readable]

    @property
    def verified(self) -> list[Example]:
        """Those of them that the verifier does not fail and the votes do not doubt."""
        return list(build("curators", "verified").curate(self.unverified, None, 0))

    @property
    def unanswered(self) -> list[Example]:
        """The other rows of the pool, without what the teacher said."""
        known = {row.request.id for row in self.verified}
        return [Example(row.request, provenance=row.provenance) for row in self.pool if row.request.id not in known]


def task_of(name: str, data: Path | None, rows: int | None = None) -> Task:
    """SNIPS with 200 labelled and 2,000 unlabelled rows, or the smart home.

    `rows` keeps the first of labelled, pool and valid: the same ones that the whole task begins with, so that answers
    recorded for all of them serve.
    """
    task = load_task(HOME) if name == "smart_home" else snips_task(folder_of("snips", data), LABELLED, SEED, POOL)
    if rows is None:
        return task
    return replace(task, labelled=task.labelled[:rows], unlabelled=task.unlabelled[:rows], valid=task.valid[:rows])


def steps_of(task: str, kind: str, room: Room) -> list[Any]:
    """For SNIPS the pipeline of prototype_quality, or that without its large model; for the smart home the demo's.

    Raises UserError where the smart home shall do without a large model.
    """
    if kind == "small" and task != "snips":
        raise UserError(f"{task} has no teacher without the large model", "--task snips, or --recorded FOLDER")
    if task != "snips":
        return [{"method": "retrieve", "examples": 6}, "fill", "check"]
    return [stacked([], room.reader) if kind == "small" else known_as(QUICK, room)]


def taught(
    task: Task,
    parts: Sequence[str],
    kind: str,
    folder: Path,
    recorded: Path | None,
    progress: Progress,
    engine: str = ENGINES[0],
) -> Taught:
    """The answers to these parts, read where they stand: in `recorded`/TASK, or in `folder`/TASK (small/TASK) below.

    Asked for and written where they do not. Raises UserError where `recorded` lacks rows of the task.
    """
    home = (recorded or (folder / "small" if kind == "small" else folder)) / task.name
    found = {part: _read(home / f"{part}.jsonl", asked_of(task, part)) for part in parts}
    lacking = [part for part, rows in found.items() if rows is None]
    if lacking and recorded is not None:
        raise UserError(
            f"{home / lacking[0]}.jsonl is not there or lacks rows of {task.name}",
            "record it by this command without --recorded, where a large model runs",
        )
    if lacking:
        with _room(kind, engine, folder, progress) as room:
            steps = steps_of(task.name, kind, room)
            for part in lacking:
                found[part] = _asked(room, task, part, steps)
                write_rows(home / f"{part}.jsonl", [row.to_json() for row in found[part] or ()])
    return Taught(**{part: tuple(rows or ()) for part, rows in found.items()})


def asked_of(task: Task, part: str) -> Sequence[Example]:
    return task.unlabelled if part == "pool" else task.valid


def worth_of(task: Task, rows: Sequence[Example]) -> dict[str, float]:
    """How many rows, and the share of those of which the truth is known that are right."""
    pairs = [(row.answer, task.pool_gold.get(row.request.id)) for row in rows]
    right = [is_exact(answer, gold, task.tool_map) for answer, gold in pairs if answer and gold is not None]
    return {"rows": len(rows), **({"exact": sum(right) / len(right)} if right else {})}


def _read(path: Path, wanted: Sequence[Example]) -> list[Example] | None:
    """The wanted rows in their order; None where the file lacks one."""
    if not path.is_file():
        return None
    known = {row.request.id: row for row in map(Example.from_json, read_rows(path))}
    if any(row.request.id not in known for row in wanted):
        return None
    # A file of another draw would name other texts by the same numbers.
    if any(known[row.request.id].request.text != row.request.text for row in wanted):
        raise UserError(f"{path} has other texts than the task", "it was recorded of other data; remove it")
    return [known[row.request.id] for row in wanted]


def _asked(room: Room, task: Task, part: str, steps: Sequence[Any]) -> list[Example]:
    requests = [row.request for row in asked_of(task, part)]
    answers, _, _ = answered(room, task, f"teacher on {part}", requests, steps)
    return [
        Example(request, answer, task.verify(request, answer.calls), {"source": "pool", "by": "teacher"})
        for request, answer in zip(requests, answers, strict=True)
    ]


@contextmanager
def _room(kind: str, method: str, folder: Path, progress: Progress) -> Iterator[Room]:
    """Where a teacher works; its models are closed again before a student is taught."""
    engine: Any = build("engines", {"method": method, "model": MODEL}).open() if kind == "pipeline" else _Nobody()
    ledger = Ledger(folder / "ledger.sqlite")
    try:
        yield Room(engine, ledger, seed=SEED, progress=progress)
    finally:
        engine.close()
        ledger.close()


class _Nobody:
    """Stands where a pipeline has a large model and never asks it."""

    name = "none"
    price = Price()

    def complete(self, *asked: Any, **more: Any) -> Any:
        raise AssertionError("a teacher without a large model has none to ask")

    score = complete

    def close(self) -> None:
        pass
