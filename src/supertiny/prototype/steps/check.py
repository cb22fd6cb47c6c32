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

from supertiny.core.records import Answer, Prompt, Sampling
from supertiny.prototype.bench import Bench, Trace


@dataclass(frozen=True)
class Check:
    """Asks again where the verifier says fail; the second answer counts only if it passes."""

    max_tokens: Annotated[int, Field(ge=1)] = 96
    """Tokens that an answer may have."""

    calls_per_request = 0.3

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        complaints = {place: said for place, trace in enumerate(traces) if (said := self._complaint(trace, bench))}
        failed = [traces[place] for place in complaints]
        prompts = [self._again(trace, said, bench) for trace, said in zip(failed, complaints.values(), strict=True)]
        tools = [bench.tools_of(trace) for trace in failed]
        checked = list(traces)
        for place, second in zip(
            complaints, bench.call(failed, prompts, Sampling(self.max_tokens), tools), strict=True
        ):
            mended = second.calls is not None and not self._complaint(second, bench)
            checked[place] = replace(second, tool=None) if mended else replace(traces[place], cost=second.cost)
        return checked

    def _complaint(self, trace: Trace, bench: Bench) -> str:
        if trace.calls is None:
            return "this is not a call in the format"
        verdict = bench.task.verify(trace.request, trace.calls)
        return verdict.reason or "the call is not valid" if verdict.outcome == "fail" else ""

    def _again(self, trace: Trace, complaint: str, bench: Bench) -> Prompt:
        first = bench.prompt(trace)
        none = bench.form.write(Answer())
        turns = (
            {"role": "assistant", "content": trace.raw},
            {
                "role": "user",
                "content": f"That is wrong: {complaint}. Write the right call for the same request, or {none}.",
            },
        )
        return Prompt((*first.messages, *turns), shared=first.shared)
