"""The teacher pipeline and the plain prompt it is compared with, as answerers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from supertiny.core.ledger import LedgerEngine
from supertiny.core.methods import build, own_methods
from supertiny.core.nearest import NearestExamples
from supertiny.core.protocols import Engine, Format
from supertiny.core.records import Answer, Request
from supertiny.core.run import Run
from supertiny.core.task import STEPS, Task
from supertiny.prototype.bench import Bench, Shelf, StepCost, Trace
from supertiny.prototype.settings import Settings
from supertiny.prototype.steps.plain import Plain


class Pipeline:
    """An LLM led through steps: slow, dear and as good as it can be. An `Answerer`."""

    name = "pipeline"

    def __init__(self, steps: Sequence[Any], bench: Bench, chunk: int) -> None:
        self.steps = steps
        self.bench = bench
        self.chunk = chunk
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
        return [_answer_of(trace, self.name) for trace in self.trace(requests)]

    def trace(self, requests: Sequence[Request]) -> list[Trace]:
        """The requests' traces at the end of the pipeline, with the price of each step."""
        names = step_names(self.steps)
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
        return Pipeline(self.steps, free, self.chunk)

    def close(self) -> None:
        self.bench.shelf.close()
        self.bench.engine.close()


def step_names(steps: Sequence[Any]) -> list[str]:
    """The steps' names, as a recipe has them; a number tells apart those that are there several times."""
    names: list[str] = []
    for step in steps:
        name = type(step).__module__.rpartition(".")[2]
        count = sum(known.split(" ")[0] == name for known in names)
        names.append(f"{name} {count + 1}" if count else name)
    return names


class PlainPrompt:
    """The same model with one prompt that lists all functions and shows no example. An `Answerer`."""

    name = "plain_prompt"
    calls_per_request = 1.0

    def __init__(self, engine: Engine, form: Format, task: Task, advance: Callable[[float], None]) -> None:
        self.engine = engine
        self.form = form
        self.task = task
        self.advance = advance

    @property
    def bytes(self) -> int:
        return getattr(_bare(self.engine), "bytes", 0)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        bench = Bench(self.engine, self.task, self.form, NearestExamples(()), 0, self.advance)
        traces = Plain().run([Trace(request) for request in requests], bench)
        return [_answer_of(trace, self.name) for trace in traces]

    def without_ledger(self) -> PlainPrompt:
        """The same prompt, computed every time; calls with a price are still billed."""
        return PlainPrompt(_unread(self.engine), self.form, self.task, self.advance)

    def close(self) -> None:
        self.engine.close()


def _answer_of(trace: Trace, name: str) -> Answer:
    return Answer(trace.calls or (), trace.text, trace.cost, name, trace.confidence, trace.raw, trace.calls is not None)


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
    engine: Engine = build("engines", settings.engine, "prototype.engine").open()
    return engine


def pipeline_of(
    settings: Settings,
    run: Run,
    engine: Engine,
    purpose: str,
    advance: Callable[[float], None] = lambda count: None,
    shelf: Shelf | None = None,
) -> Pipeline:
    """The recipe's pipeline on a loaded engine, behind the run's ledger.

    Pipelines that are given the same `shelf` share the engines that steps bring along; whoever made it closes it.
    """
    bench = Bench(
        engine=run.ledger.wrap(engine, purpose),
        task=replace(run.task, description=settings.wording) if settings.wording else run.task,
        form=build("formats", settings.format, "prototype.format"),
        nearest=NearestExamples(run.task.labelled),
        seed=run.seed,
        advance=advance,
        note=run.progress.note,
        wrap=lambda own: run.ledger.wrap(own, purpose),
        shelf=shelf or Shelf(),
    )
    places = [f"prototype.steps.{number}" for number in range(len(settings.steps))]
    own = own_methods("steps", run.task.folder / STEPS)
    steps = [build("steps", block, place, own) for block, place in zip(settings.steps, places, strict=True)]
    return Pipeline(steps, bench, settings.chunk)


def plain_of(
    settings: Settings, run: Run, engine: Engine, purpose: str, advance: Callable[[float], None] = lambda count: None
) -> PlainPrompt:
    """The plain prompt on a loaded engine, behind the run's ledger."""
    form = build("formats", settings.plain_format, "prototype.plain_format")
    return PlainPrompt(run.ledger.wrap(engine, purpose), form, run.task, advance)
