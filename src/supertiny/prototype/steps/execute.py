"""Calls the task's own function for each call; its result goes into the trace, and may be shown to the model.

Paper: Yao et al., ReAct, 2022, arXiv:2210.03629, where `rounds` lets the model go on with what it has learnt.
Use when: hooks.py has `execute`, and a call's result says whether it was right, or what to call next.
Differs from the paper: the model writes calls alone, no thoughts between them; a call may wait for others, as `plan`
writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from supertiny.core.records import Answer, Call, Prompt, Sampling
from supertiny.core.scoring import plain_call
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.prompting import going_on
from supertiny.prototype.steps._executing import carried_out, told


@dataclass(frozen=True)
class Execute:
    """Calls that have a result already are not carried out again; a run that goes on carries out again what it redoes.

    In a plan, $1 becomes the result that it stands for; independent calls are carried out together. A call that
    failed is dropped when the model, shown the failure, calls the same function anew.
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
        counts = {place: [len(trace.calls)] for place, trace in enumerate(done) if trace.calls}
        open_ = list(counts)
        for _ in range(self.rounds):
            if not open_:
                break
            shown = [done[place] for place in open_]
            tools = [bench.tools_of(trace) for trace in shown]
            drawn = bench.call(shown, [_next_prompt(t, bench) for t in shown], Sampling(self.max_tokens), tools)
            grown = [_grown(before, after, bench) for before, after in zip(shown, drawn, strict=True)]
            for place, trace in zip(open_, self._carried_out(grown, bench), strict=True):
                done[place] = trace
                counts[place].append(len(trace.calls or ()))
            open_ = [place for place in open_ if counts[place][-1] > counts[place][-2]]
        return [_mended(trace, counts.get(place, [])) for place, trace in enumerate(done)]

    def _carried_out(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        return carried_out(traces, bench.task, self.seconds, self.at_once)


def _next_prompt(trace: Trace, bench: Bench) -> Prompt:
    none = bench.form.write(Answer())
    words = f"Write the calls that the same request still needs, or {none} when it needs no more."
    written = bench.form.write(Answer(trace.calls or ()))
    return going_on(bench.prompt(trace), written, f"Results:\n{told(trace.results)}\n{words}")


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


def _mended(trace: Trace, counts: Sequence[int]) -> Trace:
    """Without the calls that failed and were made anew; `counts` are the numbers of calls after each round."""

    def is_dropped(place: int) -> bool:
        failed = trace.results[place]
        shown = next(count for count in counts if count > place)  # calls that the model saw with this one
        return bool(failed.error) and any(call.tool == failed.call.tool for call in (trace.calls or ())[shown:])

    kept = [place for place in range(len(trace.results)) if not is_dropped(place)]
    if len(kept) == len(trace.results):
        return trace
    calls, results = trace.calls or (), trace.results
    return replace(trace, calls=tuple(calls[p] for p in kept), results=tuple(results[p] for p in kept))
