"""Writes several calls of which later ones may use earlier ones' results; `execute` then carries them out.

Paper: Kim et al., An LLM Compiler for Parallel Function Calling, 2023, arXiv:2312.04511; Wang et al., DART-LLM, 2024,
arXiv:2411.09022, for the explicit dependencies.
Use when: a request needs what another call finds out; without `execute` after it a plan is a list of calls.
Differs from the paper: calls are numbered by their order in the answer; a plan is made anew only where it is invalid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from supertiny.core.protocols import Format
from supertiny.core.records import Answer, Grammar, Prompt, Request, Sampling, Tool
from supertiny.core.scoring import typed
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.prompting import going_on
from supertiny.prototype.steps._references import opened, plan_problem, said_in, with_properties

_RULES = (
    "Calls are numbered from 1 in the order in which you write them. Where an argument is the result of another call, "
    "write $1 for the result of call 1, $1.name for a part of it."
)


@dataclass(frozen=True)
class Plan:
    """One answer per request that was not routed to "none".

    A plan in which calls wait for each other, or for one that is not there, is handed back once; then it is no answer.
    """

    max_tokens: int = 192
    """Tokens that a plan may have."""

    calls_per_request = 1.1

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        todo = [place for place, trace in enumerate(traces) if trace.tool != ""]
        given = [traces[place] for place in todo]
        planned = self._asked(given, [_prompt(trace, bench) for trace in given], bench)
        problems = {number: problem for number, trace in enumerate(planned) if (problem := _problem(trace))}
        wrong = [planned[number] for number in problems]
        prompts = [_again(trace, problem, bench) for trace, problem in zip(wrong, problems.values(), strict=True)]
        for number, second in zip(problems, self._asked(wrong, prompts, bench), strict=True):
            if second.calls is None or _problem(second):
                nothing = planned[number].answered(planned[number].raw, None).billed_as(second)
                second = nothing.noted(f"plan: {problems[number]}")
            planned[number] = second
        done = list(traces)
        for place, trace in zip(todo, planned, strict=True):
            done[place] = trace
        return done

    def _asked(self, traces: Sequence[Trace], prompts: Sequence[Prompt], bench: Bench) -> list[Trace]:
        known = [bench.tools_of(trace) for trace in traces]
        at = replace(bench, form=_Numbered(bench.form))
        drawn = at.call(traces, prompts, Sampling(self.max_tokens), [opened(tools) for tools in known])
        return [_read(trace, tools) for trace, tools in zip(drawn, known, strict=True)]


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

    def grammar(self, tools: Sequence[Tool], words: bool = True) -> Grammar | None:
        """Of opened functions; references are $1 to $9 and have no parts, which is what a grammar can state."""
        few = {"enum": [f"${number}" for number in range(1, 10)]}
        known = [with_properties(tool, lambda schema: {"anyOf": [schema["anyOf"][0], few]}) for tool in tools]
        return self._form.grammar(known, words)


def _prompt(trace: Trace, bench: Bench) -> Prompt:
    first = bench.prompt(trace)
    system = {**first.messages[0], "content": f"{first.messages[0]['content']}\n\n{_RULES}"}
    return replace(first, messages=(system, *first.messages[1:]))


def _again(trace: Trace, problem: str, bench: Bench) -> Prompt:
    words = f"That is wrong: {problem}. Write all calls for the same request again."
    return going_on(_prompt(trace, bench), trace.raw, words)


def _problem(trace: Trace) -> str:
    return plan_problem(trace.calls or (), said_in(trace.request))


def _read(trace: Trace, tools: Sequence[Tool]) -> Trace:
    """The trace whose calls may refer to each other, with arguments of the kinds that the functions name."""
    if trace.calls is None:
        return trace
    return replace(trace, calls=typed(Answer(trace.calls), {tool.name: tool for tool in tools}).calls, planned=True)
