"""Calls the task's own function for each call; its result goes into the trace, and may be shown to the model.

Paper: Yao et al., ReAct, 2022, arXiv:2210.03629, where `rounds` lets the model go on with what it has learnt.
Use when: hooks.py has `execute`, and a call's result says whether it was right, or what to call next.
Differs from the paper: the model writes calls alone, no thoughts between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from supertiny.core.records import Answer, Call, Prompt, Sampling
from supertiny.core.scoring import plain_call
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.steps._executing import carried_out, hook_of, told


@dataclass(frozen=True)
class Execute:
    """Calls that have a result already are not carried out again; a run that goes on carries out again what it redoes.

    A call that failed is dropped when the model, shown the failure, calls the same function anew.
    """

    seconds: Annotated[float, Field(gt=0)] = 10.0
    """Time that a call may take; then its result is an error."""
    at_once: Annotated[int, Field(ge=1)] = 8
    """Calls that are carried out at a time, each in a thread of its own; 1 where the function bears no other."""
    rounds: Annotated[int, Field(ge=0)] = 0
    """Times that the model is shown the results and may call further functions; until it calls none."""
    max_tokens: int = 96
    """Tokens that each further answer may have."""

    needs = ("execute",)

    @property
    def calls_per_request(self) -> float:
        return float(self.rounds)

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        if not bench.spends:
            return list(traces)
        done = self._carried_out(traces, bench)
        open_ = [place for place, trace in enumerate(done) if trace.calls]
        for _ in range(self.rounds):
            if not open_:
                break
            shown = [done[place] for place in open_]
            tools = [bench.tools_of(trace) for trace in shown]
            prompts = [_next_prompt(trace, bench) for trace in shown]
            drawn = bench.call(shown, prompts, Sampling(self.max_tokens), tools)
            grown = [_grown(before, after, bench) for before, after in zip(shown, drawn, strict=True)]
            still = [
                place
                for place, a, b in zip(open_, shown, grown, strict=True)
                if len(b.calls or ()) > len(a.calls or ())
            ]
            for place, trace in zip(open_, self._carried_out(grown, bench), strict=True):
                done[place] = trace
            open_ = still
        return [_mended(trace) for trace in done]

    def _carried_out(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        jobs = [
            (place, call) for place, trace in enumerate(traces) for call in (trace.calls or ())[len(trace.results) :]
        ]
        hook = hook_of(bench.task)
        pairs = [(traces[place].request, call) for place, call in jobs]
        done = list(traces)
        for (place, _), result in zip(jobs, carried_out(pairs, hook, self.seconds, self.at_once), strict=True):
            done[place] = replace(done[place], results=(*done[place].results, result))
        return done


def _next_prompt(trace: Trace, bench: Bench) -> Prompt:
    first = bench.prompt(trace)
    none = bench.form.write(Answer())
    turns = (
        {"role": "assistant", "content": bench.form.write(Answer(trace.calls or ()))},
        {
            "role": "user",
            "content": f"Results:\n{told(trace.results)}\n"
            f"Write the calls that the same request still needs, or {none} when it needs no more.",
        },
    )
    return Prompt((*first.messages, *turns), shared=first.shared)


def _grown(before: Trace, after: Trace, bench: Bench) -> Trace:
    """The calls so far and those of the new answer that are not among them."""
    tools = {tool.name: tool for tool in bench.tools_of(before)}
    known = {plain_call(call, tools) for call in before.calls or ()}
    more: list[Call] = []
    for call in after.calls or ():
        if plain_call(call, tools) not in known:
            known.add(plain_call(call, tools))
            more.append(call)
    return replace(before, calls=(*(before.calls or ()), *more), text=after.text or before.text).billed_as(after)


def _mended(trace: Trace) -> Trace:
    """Without the calls that failed and were made anew."""
    calls = trace.calls or ()
    dropped = {
        place
        for place, result in enumerate(trace.results)
        if result.error and any(later.tool == result.call.tool for later in calls[place + 1 :])
    }
    if not dropped:
        return trace
    kept = [place for place in range(len(calls)) if place not in dropped]
    results = tuple(result for place, result in enumerate(trace.results) if place not in dropped)
    return replace(trace, calls=tuple(calls[place] for place in kept), results=results)
