"""Asks a cheap model first, and the pipeline's own only where the cheap answer is doubtful.

Paper: Chen et al., FrugalGPT, 2023, arXiv:2305.05176.
Use when: a small model answers most requests right, and the verifier or its own probability tells which.
Differs from the paper: the task's verifier and the answer's log-probability doubt it, not a trained scorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from supertiny.core.errors import UserError
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.steps._within import calls_within, steps_within

_DOUBTFUL_SHARE = 0.3  # of requests, where nothing else is known


@dataclass(frozen=True)
class Cascade:
    """Runs the same steps with both engines; a trace's `by` says which one answered."""

    engine: Any = field(metadata={"family": "engines"})
    """What runs the cheap model."""
    steps: tuple[Any, ...] = field(default=("fill",), metadata={"family": "steps"})
    """Steps that answer, with the cheap engine and again with the dear one."""
    least_logprob: float | None = None
    """Mean natural-log probability of an answer's tokens under which it is doubtful; the verifier alone decides where
    it is not given."""

    @property
    def calls_per_request(self) -> float:
        return (1 + _DOUBTFUL_SHARE) * calls_within(self.steps)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logprobs",) if self.least_logprob is not None else ()

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        if not traces:
            return []
        cheap = bench.on(self.engine)
        done = self._answered(traces, cheap)
        doubtful = [place for place, trace in enumerate(done) if self._is_doubtful(trace, cheap)]
        # The dear model starts where the cheap one did, and pays for both.
        again = [traces[place].billed_as(done[place]) for place in doubtful]
        for place, trace in zip(doubtful, self._answered(again, bench), strict=True):
            better = trace.calls is not None or done[place].calls is None
            done[place] = trace if better else done[place].billed_as(trace)
        return done

    def _answered(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        done = list(traces)
        for step in steps_within(self.steps, bench.task, "cascade.steps") if traces else ():
            done = step.run(done, bench)
        return [replace(trace, by=bench.engine.name) for trace in done]

    def _is_doubtful(self, trace: Trace, bench: Bench) -> bool:
        if bench.complaint(trace):
            return True
        if self.least_logprob is None:
            return False
        if trace.logprob is None:
            problem = f"{bench.engine.name} gives no log-probabilities, which cascade's least_logprob needs"
            raise UserError(problem, "leave least_logprob out, or set `logprobs: true` in an openai engine")
        return trace.logprob < self.least_logprob
