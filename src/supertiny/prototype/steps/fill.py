"""Writes the call: the chosen function's arguments under that function's schema.

Use when: always; without `route` before it, it chooses the function and fills it in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supertiny.core.records import Grammar, Sampling
from supertiny.prototype.bench import Bench, Trace


@dataclass(frozen=True)
class Fill:
    """One completion per request that was not routed to "none"."""

    max_tokens: int = 96
    """Tokens that an answer may have."""
    constrained: bool = True
    """Whether the function's grammar is kept while writing."""

    calls_per_request = 1.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        todo = [place for place, trace in enumerate(traces) if trace.tool != ""]
        chosen = [traces[place] for place in todo]
        grammars = [self._grammar(trace, bench) for trace in chosen]
        prompts = [bench.prompt(trace) for trace in chosen]
        paid, done = bench.complete(chosen, prompts, Sampling(self.max_tokens), grammars)
        filled = list(traces)
        for place, trace, completion in zip(todo, paid, done, strict=True):
            filled[place] = trace.answered(completion.text, bench.read(completion.text))
        return filled

    def _grammar(self, trace: Trace, bench: Bench) -> Grammar | None:
        tools = trace.request.tools or bench.task.tools
        if trace.tool:
            tools = tuple(tool for tool in tools if tool.name == trace.tool)
        return bench.form.grammar(tools) if self.constrained else None
