"""Writes the call: the chosen function's arguments under that function's schema.

Use when: always; without `route` before it, it chooses the function and fills it in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from supertiny.core.records import Sampling, Tool
from supertiny.prototype.bench import Bench, Trace


@dataclass(frozen=True)
class Fill:
    """One completion per request that was not routed to "none".

    Several calls stand where one of them is of the chosen function; of several candidates, calls of these alone.
    """

    max_tokens: Annotated[int, Field(ge=1)] = 96
    """Tokens that an answer may have."""

    calls_per_request = 1.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        todo = [place for place, trace in enumerate(traces) if trace.tool != ""]
        chosen = [traces[place] for place in todo]
        tools = [self._tools(trace, bench) for trace in chosen]
        answered = bench.call(chosen, [bench.prompt(t) for t in chosen], Sampling(self.max_tokens), tools)
        filled = list(traces)
        for place, trace in zip(todo, answered, strict=True):
            filled[place] = trace
        return filled

    def _tools(self, trace: Trace, bench: Bench) -> Sequence[Tool]:
        tools = bench.tools_of(trace)
        names = (trace.tool,) if trace.tool else trace.candidates
        return [tool for tool in tools if tool.name in names] if names else tools
