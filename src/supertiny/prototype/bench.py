"""What the steps of the teacher pipeline work with, and the traces that they work on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from supertiny.core.nearest import NearestExamples
from supertiny.core.protocols import Engine, Format
from supertiny.core.records import Answer, Call, Completion, Cost, Example, Grammar, Prompt, Request, Sampling, Tool
from supertiny.core.scoring import typed
from supertiny.core.task import Task
from supertiny.formats._lawful import bindable, complete_lawfully
from supertiny.prototype.prompting import few_shot_messages, instructions


@dataclass(frozen=True)
class Trace:
    """A request on its way through the pipeline."""

    request: Request
    examples: tuple[Example, ...] = ()
    """Solved examples that are shown with the request."""
    tool: str | None = None
    """The function that `route` chose; "" is none, None is not routed yet."""
    calls: tuple[Call, ...] | None = None
    """None while there is no readable answer."""
    text: str = ""
    raw: str = ""
    confidence: float | None = None
    cost: Cost = field(default_factory=Cost)

    def paid(self, completion: Completion, dollars: float) -> Trace:
        """The same trace with a completion's cost added."""
        cost = Cost(dollars, completion.seconds, completion.tokens_in, completion.tokens_out, completion.tokens_cached)
        return replace(self, cost=self.cost + cost)

    def answered(self, raw: str, answer: Answer | None) -> Trace:
        """The same trace with what the model wrote; an unreadable text leaves it without calls."""
        if answer is None:
            return replace(self, raw=raw, calls=None, text="")
        return replace(self, raw=raw, calls=answer.calls, text=answer.text)


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

    def prompt(self, trace: Trace) -> Prompt:
        """System message with the functions (shared), solved examples as turns, the request."""
        words = instructions(self.task.description, self.form, self.tools_of(trace))
        system = {"role": "system", "content": words}
        turns = few_shot_messages(trace.examples, self.form)
        return Prompt((system, *turns, *trace.request.messages), shared=1)

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
        return self._paid(traces, done), done

    def call(
        self, traces: Sequence[Trace], prompts: Sequence[Prompt], sampling: Sampling, tools: Sequence[Sequence[Tool]]
    ) -> list[Trace]:
        """Completes the prompts with valid calls of each one's tools; gives the traces with answer and cost."""
        done = complete_lawfully(self.engine, prompts, sampling, self.form, tools, self.advance)
        paid = self._paid(traces, done)
        return [t.answered(c.text, self._read(c, known)) for t, c, known in zip(paid, done, tools, strict=True)]

    def tools_of(self, trace: Trace) -> Sequence[Tool]:
        """The functions that a request may be turned into."""
        return trace.request.tools or self.task.tools

    def _paid(self, traces: Sequence[Trace], done: Sequence[Completion]) -> list[Trace]:
        price = self.engine.price
        dollars = [price.dollars(c.tokens_in, c.tokens_out, c.tokens_cached, c.seconds) for c in done]
        return [t.paid(c, d) for t, c, d in zip(traces, done, dollars, strict=True)]

    def _read(self, completion: Completion, tools: Sequence[Tool]) -> Answer | None:
        """The answer in a completion, or None where it was cut off or is not in the format."""
        if completion.finish != "stop":
            return None
        try:
            return typed(self.form.decode(completion.text), {tool.name: tool for tool in tools})
        except ValueError:
            return None
