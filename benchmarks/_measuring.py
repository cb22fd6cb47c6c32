"""What the parts of a quality benchmark share: the engine behind a ledger, shares with intervals, seconds a request."""

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
from supertiny.core.records import Answer, Call, Completion, Example, Grammar, Prompt, Request, Sampling, TokenScores
from supertiny.core.scoring import exact, wilson_interval
from supertiny.core.task import Task
from supertiny.prototype.bench import Bench, Trace

Row = tuple[str, str, float]  # figure's name, what it is, value


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
    views: str = "auto"
    """Ways of asking in the pipeline of SNIPS: marked, listed, both, or auto, chosen on labelled rows."""

    def count(self, usual: int, quick: int = 20) -> int:
        """Rows to take; 0 is all."""
        return self.rows if self.rows is not None else quick if self.quick else usual

    def watched(self, purpose: str, advance: Callable[[float], None] = lambda count: None) -> Stopwatch:
        """The engine behind the ledger; `advance` is told of each completion."""
        return Stopwatch(self.ledger.wrap(self.engine, purpose), advance)

    def bench(self, task: Task, purpose: str, advance: Callable[[float], None] = lambda count: None) -> Bench:
        """What steps work with."""
        engine, form = self.watched(purpose, advance), build("formats", "chat_json")
        return Bench(engine, task, form, NearestExamples(task.labelled), self.seed)


class Stopwatch:
    """An engine that knows how long it was at work, so that the time of all else can be told."""

    def __init__(self, engine: Engine, advance: Callable[[float], None] = lambda count: None) -> None:
        self.engine = engine
        self.name = engine.name
        self.price = engine.price
        self.seconds = 0.0
        self._advance = advance

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        began = time.perf_counter()

        def told(index: int, completion: Completion) -> None:
            self._advance(1)
            if done is not None:
                done(index, completion)

        try:
            return self.engine.complete(prompts, sampling, grammar, told) if prompts else []
        finally:
            self.seconds += time.perf_counter() - began

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        return self.engine.score(prompts, continuations, top)

    def close(self) -> None:
        self.engine.close()


@dataclass(frozen=True)
class Measured:
    """Answers to the same rows, their exactness, and seconds a request: the engine's and all else."""

    name: str
    answers: tuple[Answer, ...]
    gold: tuple[tuple[Call, ...], ...]
    hits: tuple[bool, ...]
    seconds: float

    @property
    def share(self) -> float:
        return sum(self.hits) / max(1, len(self.hits))

    @property
    def slot_f1(self) -> float:
        """F1 of (function, argument, value), over all rows."""
        shared = said = wanted = 0
        for answer, gold in zip(self.answers, self.gold, strict=True):
            left, right = _items(answer.calls), _items(gold)
            shared, said, wanted = shared + len(left & right), said + len(left), wanted + len(right)
        return 2 * shared / max(1, said + wanted)

    def first(self, count: int) -> Measured:
        """The same on the first rows; seconds stay those of all."""
        return replace(self, answers=self.answers[:count], gold=self.gold[:count], hits=self.hits[:count])


def _items(calls: Sequence[Call]) -> set[tuple[str, str, str]]:
    return {(call.tool, slot, str(value)) for call in calls for slot, value in call.arguments.items()}


def measure(name: str, rows: Sequence[Example], task: Task, bench: Bench, answer: Callable[..., Any]) -> Measured:
    """Answers the rows by `answer(requests)` and holds them against their gold."""
    began, worked = time.perf_counter(), engine_seconds(bench)
    answers = answer([row.request for row in rows])
    beside = time.perf_counter() - began - (engine_seconds(bench) - worked)
    gold = tuple(row.answer.calls if row.answer else () for row in rows)
    hits = tuple(exact(a.calls, g, task.tool_map) for a, g in zip(answers, gold, strict=True))
    spent = sum(a.cost.seconds for a in answers) + beside
    return Measured(name, tuple(answers), gold, hits, spent / max(1, len(rows)))


def engine_seconds(bench: Bench) -> float:
    return bench.engine.seconds if isinstance(bench.engine, Stopwatch) else 0.0


def by_steps(steps: Sequence[Any], bench: Bench) -> Callable[[Sequence[Request]], list[Answer]]:
    """An answerer that leads requests through steps, all of them together."""

    def answer(requests: Sequence[Request]) -> list[Answer]:
        traces = [Trace(request) for request in requests]
        for step in steps:
            traces = step.run(traces, bench)
        return [
            Answer(t.calls or (), t.text, t.cost, "pipeline", t.confidence, t.raw, t.calls is not None) for t in traces
        ]

    return answer


def shares(name: str, meaning: str, hits: Sequence[bool]) -> list[Row]:
    """A share as a figure, with its 95 % interval and the number of rows as figures of their own."""
    low, high = wilson_interval(sum(hits), len(hits))
    return [
        (name, meaning, sum(hits) / max(1, len(hits))),
        (f"{name}_low", "lower end of its 95 % interval", low),
        (f"{name}_high", "upper end", high),
        (f"{name}_n", "rows", float(len(hits))),
    ]
