"""Samples several answers and takes the one that most agree on; the share of votes is the confidence.

Paper: Wang et al., Self-Consistency, 2022, arXiv:2203.11171.
Use when: the labels should be trusted, or routing at serving time needs a confidence.
Differs from the paper: the answer so far has a vote too and wins ties; answers that the verifier fails have none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from supertiny.core.records import Call, Sampling
from supertiny.core.scoring import plain_call
from supertiny.prototype.bench import Bench, Trace


@dataclass(frozen=True)
class Vote:
    """`samples` further answers for each request, drawn with `temperature`."""

    samples: Annotated[int, Field(ge=1)] = 2
    """Answers drawn beside the one at hand."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature."""
    max_tokens: Annotated[int, Field(ge=1)] = 96
    """Tokens that an answer may have."""

    @property
    def calls_per_request(self) -> float:
        return float(self.samples)

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        first, traces = list(traces), list(traces)
        ballots: list[list[Trace]] = [[trace] if trace.calls is not None else [] for trace in traces]
        prompts = [bench.prompt(trace) for trace in traces]
        tools = [bench.tools_of(trace) for trace in traces]
        for sample in range(self.samples):
            sampling = Sampling(self.max_tokens, self.temperature, seed=bench.seed * 1000 + sample + 1)
            traces = bench.call(traces, prompts, sampling, tools)
            for ballot, trace in zip(ballots, traces, strict=True):
                ballot.append(trace)
        hands = [replace(before, cost=after.cost) for before, after in zip(first, traces, strict=True)]
        return [self._elected(trace, ballot, bench) for trace, ballot in zip(hands, ballots, strict=True)]

    def _elected(self, trace: Trace, ballot: Sequence[Trace], bench: Bench) -> Trace:
        valid = [t for t in ballot if t.calls is not None and self._passes(t, bench)]
        if not valid:
            return replace(trace, confidence=0.0)
        names = [self._name(t.calls or (), bench) for t in valid]
        winner, votes = Counter(names).most_common(1)[0]  # first seen wins ties, and the answer so far comes first
        best = valid[names.index(winner)]
        return replace(best, cost=trace.cost, confidence=votes / (self.samples + 1))

    def _passes(self, trace: Trace, bench: Bench) -> bool:
        return bench.task.verify(trace.request, trace.calls or ()).outcome != "fail"

    def _name(self, calls: Sequence[Call], bench: Bench) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(plain_call(call, bench.task.tool_map) for call in calls))
