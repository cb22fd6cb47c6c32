"""Writes several calls of which later ones may use earlier ones' results; independent ones are carried out together.

Paper: Kim et al., An LLM Compiler for Parallel Function Calling, 2023, arXiv:2312.04511; Wang et al., DART-LLM, 2024,
arXiv:2411.09022, for the explicit dependencies.
Use when: a request needs what another call finds out; without `execute` in hooks.py a plan is a list of calls.
Differs from the paper: calls are numbered by their order in the answer; a plan is made anew only where it is invalid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from supertiny.core.protocols import Format
from supertiny.core.records import Answer, Grammar, Prompt, Request, Sampling, Tool
from supertiny.core.scoring import typed
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.steps._executing import carried_out
from supertiny.prototype.steps._graph import Running, listed, opened, plan_problem

_RULES = (
    "Calls are numbered from 1 in the order in which you write them. Where an argument is the result of another call, "
    "write $1 for the result of call 1, $1.name for a part of it."
)


@dataclass(frozen=True)
class Plan:
    """One answer per request; a plan that cannot be carried out is handed back once."""

    max_tokens: int = 192
    """Tokens that a plan may have."""
    seconds: Annotated[float, Field(gt=0)] = 10.0
    """Time that a call may take where it is carried out; then its result is an error."""
    at_once: Annotated[int, Field(ge=1)] = 8
    """Calls that are carried out at a time, each in a thread of its own; 1 where the function bears no other."""

    calls_per_request = 1.1

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        planned = self._asked(traces, [_prompt(trace, bench) for trace in traces], bench)
        problems = [plan_problem(trace.calls or (), _said(trace.request)) for trace in planned]
        wrong = [place for place, problem in enumerate(problems) if problem]
        if wrong:
            prompts = [_again(planned[place], problems[place], bench) for place in wrong]
            for place, second in zip(
                wrong, self._asked([planned[place] for place in wrong], prompts, bench), strict=True
            ):
                mended = second.calls is not None and not plan_problem(second.calls, _said(second.request))
                kept = second if mended else planned[place].billed_as(second)
                planned[place] = kept if mended else kept.noted(f"plan: {problems[place]}")
        if bench.task.execute is None or not bench.spends:
            return planned
        return self._carried_out(planned, bench)

    def _asked(self, traces: Sequence[Trace], prompts: Sequence[Prompt], bench: Bench) -> list[Trace]:
        known = [bench.tools_of(trace) for trace in traces]
        at = replace(bench, form=_Numbered(bench.form))
        drawn = at.call(traces, prompts, Sampling(self.max_tokens), [opened(tools) for tools in known])
        return [_typed(trace, tools) for trace, tools in zip(drawn, known, strict=True)]

    def _carried_out(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        """All requests' calls that wait for nothing, then those that waited for these, and so on."""
        assert bench.task.execute is not None
        runs = [Running(trace, _said(trace.request)) for trace in traces]
        while jobs := [(run, number, call) for run in runs for number, call in run.ready()]:
            pairs = [(run.trace.request, call) for run, _, call in jobs]
            results = carried_out(pairs, bench.task.execute, self.seconds, self.at_once)
            for (run, number, _), result in zip(jobs, results, strict=True):
                run.results[number] = result
        return [run.finished() for run in runs]


class _Numbered:
    """A format that also reads calls which the model has numbered."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self.stop, self.rules = form.stop, form.rules

    def encode(self, request: Request, tools: Sequence[Tool]) -> Prompt:
        return self._form.encode(request, tools)

    def write(self, answer: Answer) -> str:
        return self._form.write(answer)

    def decode(self, text: str) -> Answer:
        return self._form.decode(re.sub(r"(?m)^\s*\d+[.)]\s+", "", text))

    def grammar(self, tools: Sequence[Tool]) -> Grammar | None:
        return self._form.grammar(listed(tools))


def _prompt(trace: Trace, bench: Bench) -> Prompt:
    first = bench.prompt(trace)
    system = {**first.messages[0], "content": f"{first.messages[0]['content']}\n\n{_RULES}"}
    return replace(first, messages=(system, *first.messages[1:]))


def _again(trace: Trace, problem: str, bench: Bench) -> Prompt:
    first = _prompt(trace, bench)
    turns = (
        {"role": "assistant", "content": trace.raw},
        {"role": "user", "content": f"That is wrong: {problem}. Write all calls for the same request again."},
    )
    return replace(first, messages=(*first.messages, *turns))


def _typed(trace: Trace, tools: Sequence[Tool]) -> Trace:
    if trace.calls is None:
        return trace
    return replace(trace, calls=typed(Answer(trace.calls), {tool.name: tool for tool in tools}).calls)


def _said(request: Request) -> str:
    return "\n".join(str(message.get("content") or "") for message in request.messages)
