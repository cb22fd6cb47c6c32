"""The teacher pipeline, and the one plain prompt that it is compared with: a pipeline of one step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from supertiny.core.ledger import LedgerEngine
from supertiny.core.methods import build, own_methods
from supertiny.core.nearest import NearestExamples
from supertiny.core.protocols import Engine
from supertiny.core.records import Answer, Request
from supertiny.core.run import Run
from supertiny.core.task import STEPS
from supertiny.prototype.bench import Bench, Shelf, StepCost, Trace, open_block
from supertiny.prototype.settings import Settings
from supertiny.prototype.steps.plain import Plain


class Pipeline:
    """An LLM led through steps: slow, dear and as good as it can be. An `Answerer`."""

    def __init__(self, steps: Sequence[Any], bench: Bench, chunk: int, name: str = "pipeline") -> None:
        """`chunk` requests go through all steps together.

        All requests do where a step scores texts: it calibrates by them, and an engine that has to load its model anew
        between scoring and writing does so once.
        """
        scores = any("token_scores" in getattr(step, "needs", ()) for step in steps)
        self.steps = steps
        self.bench = bench
        self.chunk = sys.maxsize if scores else chunk
        self.name = name
        self._spent: dict[str, StepCost] = {}

    @property
    def calls_per_request(self) -> float:
        """Model calls that a request is expected to take."""
        return float(sum(step.calls_per_request for step in self.steps))

    @property
    def bytes(self) -> int:
        return getattr(_bare(self.bench.engine), "bytes", 0)

    @property
    def costs_by_step(self) -> dict[str, StepCost]:
        """What each step took for the requests that were answered so far, and what was paid once, by what for."""
        return {**self._spent, **self.bench.shelf.fixed}

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        return [trace.as_answer(self.name) for trace in self.trace(requests)]

    def trace(self, requests: Sequence[Request]) -> list[Trace]:
        """The requests' traces at the end of the pipeline, with the price of each step."""
        names = _step_names(self.steps)
        finished: list[Trace] = []
        for start in range(0, len(requests), self.chunk):
            traces = [Trace(request) for request in requests[start : start + self.chunk]]
            for name, step in zip(names, self.steps, strict=True):
                traces = self._step(name, step, traces)
            finished += traces
        return finished

    def _step(self, name: str, step: Any, traces: Sequence[Trace]) -> list[Trace]:
        done = []
        for before, after in zip(traces, step.run(traces, self.bench), strict=True):
            spent = after.spent - before.spent
            self._spent[name] = self._spent.get(name, StepCost()) + spent
            done.append(replace(after, steps=(*before.steps, (name, spent))))
        return done

    def without_ledger(self) -> Pipeline:
        """The same pipeline that computes every call, to measure its latency; calls with a price are still billed."""
        bench = self.bench
        free = replace(bench, engine=_unread(bench.engine), wrap=lambda engine: _unread(bench.wrap(engine)))
        return Pipeline(self.steps, free, self.chunk, self.name)

    def close(self) -> None:
        self.bench.shelf.close()
        self.bench.engine.close()


def _step_names(steps: Sequence[Any]) -> list[str]:
    """The steps' names, as a recipe has them; a number tells apart those that are there several times."""
    names: list[str] = []
    for step in steps:
        name = type(step).__module__.rpartition(".")[2]
        count = sum(known.split(" ")[0] == name for known in names)
        names.append(f"{name} {count + 1}" if count else name)
    return names


def _unread(engine: Engine) -> Engine:
    """The engine that computes every call: behind the ledger still where calls are paid, without it where not."""
    price = engine.price
    by_token = price.dollars_per_million_in or price.dollars_per_million_out or price.dollars_per_million_cached
    if by_token and isinstance(engine, LedgerEngine):
        return engine.anew("latency on test")
    return _bare(engine)


def _bare(engine: Engine) -> Engine:
    bare: Engine = getattr(engine, "engine", engine)
    return bare


def open_engine(settings: Settings) -> Engine:
    """Loads the teacher's model."""
    return open_block(settings.engine, "prototype.engine")


def pipeline_of(
    settings: Settings,
    run: Run,
    engine: Engine,
    purpose: str,
    advance: Callable[[float], None] = lambda count: None,
    shelf: Shelf | None = None,
) -> Pipeline:
    """The recipe's pipeline on a loaded engine, behind the run's ledger.

    Pipelines that are given the same `shelf` share what steps keep on it; whoever made it closes it.
    """
    shelf = shelf or Shelf()
    if purpose.startswith("pipeline on"):  # not what a search or a curator tries
        run.ledger.note_steps([settings.steps, settings.format])
    bench = Bench(
        engine=run.ledger.wrap(engine, purpose),
        task=replace(run.task, description=settings.wording) if settings.wording else run.task,
        form=build("formats", settings.format, "prototype.format"),
        nearest=shelf.once("labelled rows", lambda: NearestExamples(run.task.labelled)),
        seed=run.seed,
        advance=advance,
        note=run.progress.note,
        wrap=lambda own: run.ledger.wrap(own, purpose),
        shelf=shelf,
    )
    places = [f"prototype.steps.{number}" for number in range(len(settings.steps))]
    own = own_methods("steps", run.task.folder / STEPS)
    steps = [build("steps", block, place, own) for block, place in zip(settings.steps, places, strict=True)]
    return Pipeline(steps, bench, settings.chunk)


def plain_of(
    settings: Settings, run: Run, engine: Engine, purpose: str, advance: Callable[[float], None] = lambda count: None
) -> Pipeline:
    """The plain prompt on a loaded engine, behind the run's ledger: all functions, no example, all requests at once."""
    form = build("formats", settings.plain_format, "prototype.plain_format")
    bench = Bench(run.ledger.wrap(engine, purpose), run.task, form, NearestExamples(()), run.seed, advance)
    return Pipeline([Plain()], bench, sys.maxsize, "plain_prompt")
