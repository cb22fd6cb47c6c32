"""Puts rows of valid to pipelines and keeps, row by row, how right each answer was and what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.files import hash_of
from supertiny.core.protocols import Engine
from supertiny.core.records import Answer, Example
from supertiny.core.run import Run
from supertiny.core.scoring import is_exact, paired_bootstrap, similarity, wilson_interval
from supertiny.prototype.bench import Shelf, StepCost
from supertiny.prototype.search.settings import Settings as Search
from supertiny.prototype.search.space import Candidate
from supertiny.prototype.settings import Settings
from supertiny.prototype.teacher import Pipeline, pipeline_of

PURPOSE = "optimise"
_ROUNDS = 2000  # of the bootstrap


@dataclass
class Measured:
    """A pipeline on the first so many rows of a search; lists have one value a row."""

    candidate: Candidate
    hits: list[float] = field(default_factory=list)
    """1 where the calls are exactly gold's, else 0."""
    similar: list[float] = field(default_factory=list)
    """0..1, how near the calls are to gold's."""
    dollars: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Shares of the engine's time, and of all other work; what the ledger answered counts as long as it once took."""
    once: StepCost = field(default_factory=StepCost)
    """What the pipeline asks once, on no row of its own; others may share it."""

    @property
    def n(self) -> int:
        return len(self.hits)

    def of(self, rows: slice) -> Measured:
        """The same on some of its rows."""
        parts = (self.hits[rows], self.similar[rows], self.dollars[rows], self.seconds[rows])
        return Measured(self.candidate, *parts, self.once)

    def mean(self, name: str) -> float:
        values = getattr(self, name)
        return sum(values) / len(values) if values else 0.0

    def keeps_to(self, search: Search, slack: float = 1.0) -> bool:
        """Whether a mean request stays within `slack` times the search's limits of seconds and dollars."""
        limits = (("seconds", search.seconds_at_most), ("dollars", search.dollars_at_most))
        return all(limit is None or self.mean(name) <= slack * limit for name, limit in limits)

    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the share of exact answers."""
        return wilson_interval(round(sum(self.hits)), self.n)

    def above(self, other: Measured, seed: int) -> tuple[float, float, float]:
        """(mean, low, high) of this share of exact answers less the other's, on the rows that both have."""
        both = min(self.n, other.n)
        return paired_bootstrap(self.hits[:both], other.hits[:both], seed, _ROUNDS)


class Examiner:
    """Rows in their order, pipelines as they come. An engine is loaded when it is needed, one at a time."""

    def __init__(
        self, settings: Settings, run: Run, rows: Sequence[Example], open_engine: Callable[[Settings], Engine]
    ) -> None:
        self.settings = settings
        self.run = run
        self.rows = rows
        self.results: dict[str, Measured] = {}
        self._open = open_engine
        self._engine: tuple[str, Engine] | None = None
        self._shelf = Shelf(clock=self._clock)

    def measured(self, candidate: Candidate) -> Measured:
        """What is known of a pipeline; nothing yet where it was not measured."""
        return self.results.setdefault(candidate.key, Measured(candidate))

    def measure(self, candidates: Sequence[Candidate], count: int, title: str) -> None:
        """Puts the first `count` rows to each, less those that it had.

        Raises BudgetReached, and UserError that names the pipeline that cannot be run; what was done stays.
        """
        engines = list(dict.fromkeys(hash_of(candidate.engine) for candidate in candidates))
        todo = sorted(candidates, key=lambda candidate: engines.index(hash_of(candidate.engine)))
        todo = list({c.key: c for c in todo if self.measured(c).n < count}.values())
        total = sum(count - self.measured(candidate).n for candidate in todo)
        with self.run.progress.task(title, total, "requests") as tick:
            for candidate in todo:
                try:
                    self._answer(candidate, count, tick)
                except BudgetReached:
                    raise
                except UserError as error:
                    raise UserError(f"{candidate.name}: {error.problem}", error.hint) from error

    def pipeline(self, candidate: Candidate) -> Pipeline:
        """The pipeline, its engine loaded, behind the run's ledger."""
        settings = candidate.within(self.settings)
        engine = self.engine(settings)
        return pipeline_of(settings, self.run, engine, PURPOSE, shelf=self._shelf)

    def engine(self, settings: Settings) -> Engine:
        """The engine of these settings; another one that was open is closed."""
        name = hash_of(settings.engine)
        if self._engine is None or self._engine[0] != name:
            self.close()
            self.run.progress.note(f"loading {_shown(settings.engine)}")
            self._engine = (name, self._open(settings))
        return self._engine[1]

    def close(self) -> None:
        if self._engine is not None:
            self._engine[1].close()
        self._engine = None
        self._shelf.close()

    def _answer(self, candidate: Candidate, count: int, tick: Callable[[float], None]) -> None:
        self._shelf.price_of_used()  # what others asked for is not this one's
        pipeline, known = self.pipeline(candidate), self.measured(candidate)
        for start in range(known.n, count, pipeline.chunk):
            rows = self.rows[start : min(start + pipeline.chunk, count)]
            began, made = self._clock(), self._shelf.making
            answers = pipeline.answer([row.request for row in rows])
            beside = self._clock() - began - (self._shelf.making - made)
            for row, answer in zip(rows, answers, strict=True):
                self._note(known, row, answer, max(0.0, beside) / len(rows))
            tick(len(rows))
        known.once = self._shelf.price_of_used()

    def _clock(self) -> float:
        """Seconds in which no engine was at work: a difference is the time of all other work."""
        return time.perf_counter() - self.run.ledger.spent().seconds

    def _note(self, known: Measured, row: Example, answer: Answer, beside: float) -> None:
        gold = row.answer.calls if row.answer else ()
        tools = {tool.name: tool for tool in row.request.tools} or self.run.task.tool_map
        # Words that nobody can read are no "no call".
        known.hits.append(float(is_exact(answer, gold, tools)))
        known.similar.append(similarity(answer.calls, gold, tools) if answer.readable else 0.0)
        known.dollars.append(answer.cost.dollars)
        known.seconds.append(answer.cost.seconds + beside)


def _shown(engine: Any) -> str:
    return engine if isinstance(engine, str) else str(engine.get("model") or engine.get("method"))
