"""The teacher pipeline and the plain prompt it is compared with, as answerers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from supertiny.core.ledger import LedgerEngine
from supertiny.core.methods import build
from supertiny.core.nearest import NearestExamples
from supertiny.core.protocols import Engine, Format
from supertiny.core.records import Answer, Cost, Prompt, Request, Sampling
from supertiny.core.run import Run
from supertiny.core.scoring import typed
from supertiny.core.task import Task
from supertiny.formats._lawful import bindable
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.prompting import function_list
from supertiny.prototype.settings import Settings


class Pipeline:
    """An LLM led through steps: slow, dear and as good as it can be. An `Answerer`."""

    name = "pipeline"

    def __init__(self, steps: Sequence[Any], bench: Bench, chunk: int) -> None:
        self.steps = steps
        self.bench = bench
        self.chunk = chunk

    @property
    def calls_per_request(self) -> float:
        """Model calls that a request is expected to take."""
        return float(sum(step.calls_per_request for step in self.steps))

    @property
    def bytes(self) -> int:
        return getattr(_bare(self.bench.engine), "bytes", 0)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        answers: list[Answer] = []
        for start in range(0, len(requests), self.chunk):
            traces = [Trace(request) for request in requests[start : start + self.chunk]]
            for step in self.steps:
                traces = step.run(traces, self.bench)
            answers += [_answer_of(trace, self.name) for trace in traces]
        return answers

    def without_ledger(self) -> Pipeline:
        """The same pipeline that computes every call, to measure its latency; calls with a price are still billed."""
        return Pipeline(self.steps, replace(self.bench, engine=_unread(self.bench.engine)), self.chunk)

    def close(self) -> None:
        self.bench.engine.close()


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
        prompts = [self._prompt(request) for request in requests]
        grammars = bindable(self.engine, [self.form.grammar(r.tools or self.task.tools) for r in requests])
        done = self.engine.complete(prompts, Sampling(128), grammars, lambda index, completion: self.advance(1))
        answers = []
        for request, completion in zip(requests, done, strict=True):
            dollars = self.engine.price.dollars(
                completion.tokens_in, completion.tokens_out, completion.tokens_cached, completion.seconds
            )
            cost = Cost(
                dollars, completion.seconds, completion.tokens_in, completion.tokens_out, completion.tokens_cached
            )
            try:
                known = {tool.name: tool for tool in request.tools or self.task.tools}
                read = typed(self.form.decode(completion.text), known)
            except ValueError:
                read = Answer(readable=False)
            answers.append(replace(read, cost=cost, by=self.name, raw=completion.text))
        return answers

    def without_ledger(self) -> PlainPrompt:
        """The same prompt, computed every time; calls with a price are still billed."""
        return PlainPrompt(_unread(self.engine), self.form, self.task, self.advance)

    def close(self) -> None:
        self.engine.close()

    def _prompt(self, request: Request) -> Prompt:
        words = (
            f"{self.task.description}\n\n{function_list(request.tools or self.task.tools)}\n\n"
            'Answer with a JSON list of calls, [{"name": ..., "arguments": {...}}], and nothing else. '
            "Answer [] when no function serves the request."
        )
        return Prompt(({"role": "system", "content": words}, *request.messages), shared=1)


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
    settings: Settings, run: Run, engine: Engine, purpose: str, advance: Callable[[float], None] = lambda count: None
) -> Pipeline:
    """The recipe's pipeline on a loaded engine, behind the run's ledger."""
    bench = Bench(
        engine=run.ledger.wrap(engine, purpose),
        task=run.task,
        form=build("formats", settings.format, "prototype.format"),
        nearest=NearestExamples(run.task.labelled),
        seed=run.seed,
        advance=advance,
    )
    places = [f"prototype.steps.{number}" for number in range(len(settings.steps))]
    steps = [build("steps", block, place) for block, place in zip(settings.steps, places, strict=True)]
    return Pipeline(steps, bench, settings.chunk)


def plain_of(
    settings: Settings, run: Run, engine: Engine, purpose: str, advance: Callable[[float], None] = lambda count: None
) -> PlainPrompt:
    """The plain prompt on a loaded engine, behind the run's ledger."""
    form = build("formats", settings.plain_format, "prototype.plain_format")
    return PlainPrompt(run.ledger.wrap(engine, purpose), form, run.task, advance)
