"""What the steps of the teacher pipeline work with, and the traces that they work on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from supertiny.core.files import hash_of
from supertiny.core.methods import build
from supertiny.core.nearest import NearestExamples
from supertiny.core.protocols import Engine, Format
from supertiny.core.records import Answer, Call, Completion, Cost, Example, Grammar, Prompt, Request, Sampling, Tool
from supertiny.core.scoring import typed
from supertiny.core.task import Task
from supertiny.formats._lawful import bindable, complete_lawfully, is_lawful
from supertiny.prototype.prompting import few_shot_messages, going_on, instructions
from supertiny.prototype.steps._references import plan_problem, said_in, waits_for
from supertiny.prototype.token_scores import summed_logprobs


@dataclass(frozen=True)
class StepCost:
    """What a step took: cost and number of model calls."""

    cost: Cost = field(default_factory=Cost)
    calls: int = 0

    def __add__(self, other: StepCost) -> StepCost:
        return StepCost(self.cost + other.cost, self.calls + other.calls)

    def __sub__(self, other: StepCost) -> StepCost:
        less = other.cost
        minus = Cost(-less.dollars, -less.seconds, -less.tokens_in, -less.tokens_out, -less.tokens_cached)
        return StepCost(self.cost + minus, self.calls - other.calls)


@dataclass(frozen=True)
class Result:
    """What the task's own function gave for a call: a value, or what went wrong, as text."""

    call: Call
    value: Any = None
    error: str = ""


@dataclass(frozen=True)
class Trace:
    """A request on its way through the pipeline."""

    request: Request
    examples: tuple[Example, ...] = ()
    """Solved examples that are shown with the request."""
    tool: str | None = None
    """The function that `route` chose; "" is none, None is not routed yet."""
    candidates: tuple[str, ...] = ()
    """The functions that `route` left to choose from; empty is all."""
    calls: tuple[Call, ...] | None = None
    """None while there is no readable answer."""
    text: str = ""
    raw: str = ""
    confidence: float | None = None
    logprob: float | None = None
    """Mean natural-log probability of the tokens of `raw`, where the engine knows it."""
    planned: bool = False
    """Whether `plan` wrote the calls and they were not carried out yet: $1 in them is the result of call 1."""
    results: tuple[Result, ...] = ()
    """What the task's own functions gave, in the order of the calls."""
    by: str = ""
    """The engine that answered, where a step chose one; the pipeline's own where it is empty."""
    notes: tuple[str, ...] = ()
    """What steps have to say of this request, for people."""
    cost: Cost = field(default_factory=Cost)
    asked: int = field(default=0, compare=False)
    """Model calls so far."""
    steps: tuple[tuple[str, StepCost], ...] = ()
    """What each step took, by its name, in order; the pipeline writes it."""

    @property
    def spent(self) -> StepCost:
        """Cost and calls so far."""
        return StepCost(self.cost, self.asked)

    @property
    def failure(self) -> str:
        """What went wrong when a call was carried out, in words; empty where nothing did."""
        return next((f"{result.call.tool}: {result.error}" for result in self.results if result.error), "")

    def paid(self, completion: Completion, dollars: float, calls: int = 1) -> Trace:
        """The same trace with a completion's cost added."""
        cost = Cost(dollars, completion.seconds, completion.tokens_in, completion.tokens_out, completion.tokens_cached)
        return replace(self, cost=self.cost + cost, asked=self.asked + calls)

    def billed_as(self, other: Trace) -> Trace:
        """The same trace with what another one of the same request has cost."""
        return replace(self, cost=other.cost, asked=other.asked)

    def answered(self, raw: str, answer: Answer | None) -> Trace:
        """The same trace with what the model wrote; an unreadable text leaves it without calls."""
        if answer is None:
            return replace(self, raw=raw, calls=None, text="", planned=False, results=())
        return replace(self, raw=raw, calls=answer.calls, text=answer.text, planned=False, results=())

    def noted(self, note: str) -> Trace:
        return replace(self, notes=(*self.notes, note))

    def as_answer(self, by: str) -> Answer:
        """What the pipeline of this name answers, should it end here."""
        readable = self.calls is not None
        return Answer(self.calls or (), self.text, self.cost, by, self.confidence, self.raw, readable)


def open_block(block: Any, place: str = "prototype.steps.engine") -> Engine:
    """The engine of a recipe's block, which stands at this place."""
    engine: Engine = build("engines", block, place).open()
    return engine


class Shelf:
    """What pipelines keep from batch to batch: engines of steps, indices, what was measured once, and its price."""

    def __init__(
        self, open_engine: Callable[[Any], Engine] | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.fixed: dict[str, StepCost] = {}
        """What was spent once, on no request of its own, by what it was spent on."""
        self.making = 0.0
        """Seconds, by the clock, in which things were made that are kept."""
        self._open = open_engine or open_block
        self._clock = clock
        self._kept: dict[str, Any] = {}
        self._engines: list[Engine] = []
        self._prices: dict[str, StepCost] = {}  # of what is kept, by key
        self._under_way: list[str] = []  # keys of what is being made, each for the one before
        self._used: set[str] = set()

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gave when it was first asked for under this key."""
        self._used.add(key)
        if key not in self._kept:
            began, outermost = self._clock(), not self._under_way
            self._prices[key] = StepCost()
            self._under_way.append(key)
            try:
                self._kept[key] = make()
            finally:
                self._under_way.pop()
                self.making += self._clock() - began if outermost else 0.0
        return self._kept[key]

    def engine(self, block: Any) -> Engine:
        """The engine of a block; it is opened once."""
        return self.owned(f"engine {hash_of(block)}", lambda: self._open(block))

    def owned(self, key: str, make: Callable[[], Engine]) -> Engine:
        """As `once`, for an engine that is closed with the shelf."""

        def make_one() -> Engine:
            self._engines.append(make())
            return self._engines[-1]

        engine: Engine = self.once(key, make_one)
        return engine

    def pay(self, what: str, spent: StepCost) -> None:
        self.fixed[what] = self.fixed.get(what, StepCost()) + spent
        if self._under_way:
            self._prices[self._under_way[-1]] += spent

    def price_of_used(self) -> StepCost:
        """What was spent once on all that was asked for since this was last asked, whoever was the first to ask."""
        price = sum((self._prices[key] for key in sorted(self._used)), StepCost())
        self._used.clear()
        return price

    def close(self) -> None:
        """Frees the engines that were opened here, and forgets all else; it may be used again."""
        for engine in self._engines:
            engine.close()
        self._engines.clear()
        self._kept.clear()


@dataclass(frozen=True)
class Bench:
    """Engine, task, format and nearest labelled examples: all that a step may use."""

    engine: Engine
    task: Task
    form: Format
    nearest: NearestExamples
    seed: int
    advance: Callable[[float], None] = lambda count: None
    """Told of each finished model call."""
    note: Callable[[str], None] = lambda text: None
    """Told what a person should know while the run is under way."""
    wrap: Callable[[Engine], Engine] = lambda engine: engine
    """Puts an engine that a step brings along behind the run's ledger."""
    shelf: Shelf = field(default_factory=Shelf)
    spends: bool = True
    """False where something stands in for the engine, as in an estimate: no other server is asked, nothing is measured
    or carried out."""

    def on(self, block: Any) -> Bench:
        """The same bench with the engine of a step's own block, or this one where the block is None."""
        return self if block is None else replace(self, engine=self.wrap(self.shelf.engine(block)))

    def prompt(self, trace: Trace) -> Prompt:
        """System message with the functions (shared), solved examples as turns, the request.

        Of a trace with candidates, only these functions and the examples that call no other.
        """
        tools, examples = self.tools_of(trace), trace.examples
        if trace.candidates:
            tools = [tool for tool in tools if tool.name in trace.candidates]
            examples = tuple(e for e in examples if _tools_in(e) <= set(trace.candidates))
        words = instructions(self.task.description, self.form, tools)
        system = {"role": "system", "content": words}
        turns = few_shot_messages(examples, self.form)
        return Prompt((system, *turns, *trace.request.messages), shared=1)

    def again(self, trace: Trace, complaint: str) -> Prompt:
        """The request once more, with the answer and what is wrong with it; all functions are shown again."""
        none = self.form.write(Answer())
        words = f"That is wrong: {complaint}. Write the right call for the same request, or {none}."
        return going_on(self.prompt(replace(trace, candidates=())), trace.raw, words)

    def complete(
        self,
        traces: Sequence[Trace],
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammars: Sequence[Grammar | None] | None = None,
    ) -> tuple[list[Trace], list[Completion]]:
        """Completes the prompts; gives the traces with the cost added, and the completions."""
        bounds = None if grammars is None else bindable(self.engine, grammars)
        done = self.engine.complete(prompts, sampling, bounds, lambda index, completion: self.advance(1))
        return [t.paid(c, self._dollars(c)) for t, c in zip(traces, done, strict=True)], done

    def call(
        self,
        traces: Sequence[Trace],
        prompts: Sequence[Prompt],
        sampling: Sampling,
        tools: Sequence[Sequence[Tool]],
    ) -> list[Trace]:
        """Completes the prompts with valid calls of each one's tools; gives the traces with answer and cost.

        Of a request that was routed to one function, several calls of which one is of that function stand too.
        """
        retried: dict[int, Completion] = {}
        known = [{tool.name: tool for tool in self.tools_of(trace)} for trace in traces]

        def stands(index: int, completion: Completion) -> bool:
            chosen = traces[index].tool
            if not chosen or not is_lawful(completion, self.form, known[index]):
                return False
            names = {call.tool for call in self.form.decode(completion.text.removesuffix(self.form.stop)).calls}
            return len(names) > 1 and chosen in names

        retry = retried.__setitem__
        done = complete_lawfully(
            self.engine, prompts, sampling, self.form, tools, self.advance, stands, retry, self.words
        )
        answered = []
        for place, (trace, completion, own) in enumerate(zip(traces, done, tools, strict=True)):
            last = retried.get(place, completion)  # `completion` has the price of both tries
            read = self._read(completion, known[place] | {tool.name: tool for tool in own})
            paid = trace.paid(completion, self._dollars(completion), 1 + (place in retried))
            answered.append(replace(paid.answered(completion.text, read), logprob=mean_logprob(last)))
        return answered

    def score(
        self, traces: Sequence[Trace], prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]
    ) -> tuple[list[Trace], list[list[float]]]:
        """Natural-log probabilities of each prompt's continuations, all in one batch of the engine.

        Gives the traces with the cost added, and one list per trace, in order. Raises UserError where the engine
        cannot score.
        """
        pairs = [(p, text) for p, texts in zip(prompts, continuations, strict=True) for text in texts]
        scored = iter(summed_logprobs(self.engine, pairs))
        paid, found = [], []
        for trace, texts in zip(traces, continuations, strict=True):
            own = [next(scored) for _ in texts]
            for one in own:
                kept = Completion("", one.tokens_in, one.tokens_out, seconds=one.seconds)
                trace = trace.paid(kept, self._dollars(kept))
            self.advance(1)
            paid.append(trace)
            found.append([one.logprob for one in own])
        return paid, found

    def tools_of(self, trace: Trace) -> Sequence[Tool]:
        """The functions that a request may be turned into."""
        return trace.request.tools or self.task.tools

    @cached_property
    def words(self) -> bool:
        """Whether an answer may be words alone, as some labelled row's is; the teacher is told of calls only."""
        return any(row.answer is not None and row.answer.text and not row.answer.calls for row in self.task.labelled)

    def complaint(self, trace: Trace) -> str:
        """What is wrong with a trace's answer, in words; empty where nothing is known to be.

        The verifier says it, or the call's own function where that was carried out and failed. Calls of a plan that
        wait for results, which no verifier knows, are judged by their order and their functions' schemas.
        """
        if trace.calls is None:
            return "this is not a call in the format"
        said = said_in(trace.request)
        if trace.planned and any(waits_for(call, said) for call in trace.calls):
            return plan_problem(trace.calls, said, self.tools_of(trace))
        verdict = self.task.verify(trace.request, trace.calls)
        if verdict.outcome == "fail":
            return verdict.reason or "the call is not valid"
        return trace.failure

    def _dollars(self, done: Completion) -> float:
        return self.engine.price.dollars(done.tokens_in, done.tokens_out, done.tokens_cached, done.seconds)

    def _read(self, completion: Completion, tools: dict[str, Tool]) -> Answer | None:
        """The answer in a completion, or None where it was cut off or is not in the format."""
        if completion.finish != "stop":
            return None
        try:
            return typed(self.form.decode(completion.text.removesuffix(self.form.stop)), tools)
        except ValueError:
            return None


def mean_logprob(completion: Completion) -> float | None:
    """Mean natural-log probability of the written tokens, where the engine knows it."""
    return None if completion.logprob is None else completion.logprob / max(1, completion.tokens_out)


def _tools_in(example: Example) -> set[str]:
    return {call.tool for call in example.answer.calls} if example.answer else set()
