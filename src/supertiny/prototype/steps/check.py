"""Runs the verifier on the answer and hands its complaint back once.

Paper: Madaan et al., Self-Refine, 2023, arXiv:2303.17651.
Use when: the task has an executable verifier whose reasons tell how to mend a call.
Differs from the paper: the complaint comes from code, not from a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from supertiny.core.records import Sampling
from supertiny.prototype.bench import Bench, Trace


@dataclass(frozen=True)
class Check:
    """Asks again where the verifier says fail; the second answer counts only if it passes."""

    max_tokens: Annotated[int, Field(ge=1)] = 96
    """Tokens that an answer may have."""

    calls_per_request = 0.3

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        complaints = {place: said for place, trace in enumerate(traces) if (said := bench.complaint(trace))}
        failed = [traces[place] for place in complaints]
        prompts = [bench.again(trace, said) for trace, said in zip(failed, complaints.values(), strict=True)]
        tools = [bench.tools_of(trace) for trace in failed]
        checked = list(traces)
        seconds = bench.call(failed, prompts, Sampling(self.max_tokens), tools)
        for place, second in zip(complaints, seconds, strict=True):
            mended = not bench.complaint(second)
            checked[place] = replace(second, tool=None, candidates=()) if mended else traces[place].billed_as(second)
        return checked
