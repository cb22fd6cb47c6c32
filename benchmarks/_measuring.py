"""What the parts of a quality benchmark share: pipelines of the library's steps behind a ledger, and their figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from supertiny.core.ledger import Ledger
from supertiny.core.methods import build
from supertiny.core.nearest import NearestExamples
from supertiny.core.progress import Progress
from supertiny.core.protocols import Done, Engine
from supertiny.core.records import Answer, Completion, Example, Grammar, Prompt, Request, Sampling, TokenScores
from supertiny.core.scoring import argument_counts, exact, f1, paired_bootstrap, wilson_interval
from supertiny.core.task import Task
from supertiny.prototype.bench import Bench
from supertiny.prototype.teacher import Pipeline

Row = tuple[str, str, float]  # figure's name, what it is, value
CHUNK = 128  # requests that go through all steps together, as in a recipe


@dataclass(frozen=True)
class Room:
    """Where a part of a benchmark works. What the ledger holds is not computed again, and keeps its seconds."""

    engine: Engine
    ledger: Ledger
    data: Path | None = None
    rows: int | None = None
    """Rows of each part: None is the part's own number, 0 is all."""
    quick: bool = False
    seed: int = 7
    progress: Progress = field(default_factory=Progress)
    reader: str = "smollm2-135m-instruct-q4_1"
    """The model whose hidden states `stack` sees where it has a reader."""

    def count(self, usual: int, quick: int = 20) -> int:
        """Rows to take; 0 is all."""
        return self.rows if self.rows is not None else quick if self.quick else usual

    def bench(
        self,
        task: Task,
        purpose: str,
        advance: Callable[[float], None] = lambda count: None,
        form: str = "compact",
    ) -> Bench:
        """What steps work with; `advance` is told of each finished model call."""
        engine = Stopwatch(self.ledger.wrap(self.engine, purpose))
        nearest = NearestExamples(task.labelled)
        return Bench(engine, task, build("formats", form), nearest, self.seed, advance, self.progress.note)


class Stopwatch:
    """An engine that knows how long it was at work, so that the time of all else can be told."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name = engine.name
        self.price = engine.price
        self.seconds = 0.0

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        began = time.perf_counter()
        try:
            return self.engine.complete(prompts, sampling, grammar, done) if prompts else []
        finally:
            self.seconds += time.perf_counter() - began

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        return self.engine.score(prompts, continuations, top)

    def close(self) -> None:
        self.engine.close()


@dataclass(frozen=True)
class Measured:
    """Answers to the same rows, whether each is right, and seconds a request: the engine's and all else."""

    name: str
    answers: tuple[Answer, ...]
    hits: tuple[bool, ...]
    seconds: float
    once_seconds: float
    """Of model calls that belong to no request, such as those on labelled rows."""

    @property
    def share(self) -> float:
        return sum(self.hits) / max(1, len(self.hits))

    def first(self, count: int) -> Measured:
        """The same on the first rows; seconds stay those of all."""
        return replace(self, answers=self.answers[:count], hits=self.hits[:count])

    def slot_f1(self, rows: Sequence[Example], task: Task) -> float:
        """F1 of functions, arguments and values over all rows."""
        pairs = zip(self.answers, rows, strict=True)
        counts = [argument_counts(answer.calls, _gold(row), task.tool_map) for answer, row in pairs]
        return f1(*(sum(column) for column in zip(*counts, strict=True)))


def measured(
    room: Room, task: Task, name: str, rows: Sequence[Example], steps: Sequence[Any], form: str = "compact"
) -> Measured:
    """The rows' requests led through `steps`, which are a recipe's blocks or steps, and held against their gold."""
    answers, seconds, once = answered(room, task, name, [row.request for row in rows], steps, form)
    hits = tuple(exact(a.calls, _gold(row), task.tool_map) for a, row in zip(answers, rows, strict=True))
    found = Measured(name, tuple(answers), hits, seconds, once)
    room.progress.note(f"  {name}: {found.share:.3f} exact of {len(rows)}, {seconds:.2f} s a request")
    return found


def answered(
    room: Room, task: Task, name: str, requests: Sequence[Request], steps: Sequence[Any], form: str = "compact"
) -> tuple[list[Answer], float, float]:
    """(answers, seconds a request, seconds of model calls that belong to no request)."""
    built = [build("steps", step) if isinstance(step, str | dict) else step for step in steps]
    calls = len(requests) * sum(step.calls_per_request for step in built)
    with room.progress.task(f"{task.name}: {name}", calls, "calls") as tick:
        bench = room.bench(task, f"{task.name}: {name}", tick, form)
        pipeline = Pipeline(built, bench, CHUNK)
        began = time.perf_counter()
        answers = pipeline.answer(requests)
        worked = bench.engine.seconds if isinstance(bench.engine, Stopwatch) else 0.0
        beside = time.perf_counter() - began - worked
    spent = sum(answer.cost.seconds for answer in answers) + beside
    once = sum(cost.cost.seconds for cost in bench.shelf.fixed.values())
    return answers, spent / max(1, len(requests)), once


def _gold(row: Example) -> Any:
    return row.answer.calls if row.answer else ()


def shares(name: str, meaning: str, hits: Sequence[bool]) -> list[Row]:
    """A share as a figure, with its 95 % interval and the number of rows as figures of their own."""
    low, high = wilson_interval(sum(hits), len(hits))
    return [
        (name, meaning, sum(hits) / max(1, len(hits))),
        (f"{name}_low", "lower end of its 95 % interval", low),
        (f"{name}_high", "upper end", high),
        (f"{name}_n", "rows", float(len(hits))),
    ]


def line(
    step: str, hits: Sequence[bool], against: tuple[str, Sequence[bool]] | None = None, **more: float
) -> dict[str, Any]:
    """A line of a table: share, rows, and the difference from others on the same rows with its 95 % interval."""
    found: dict[str, Any] = {"step": step, "exact": sum(hits) / max(1, len(hits)), **more, "n": len(hits)}
    if against is not None:
        difference, low, high = paired_bootstrap(hits, against[1], seed=0)
        found |= {"against": against[0], "difference": difference, "low": low, "high": high}
    return found
