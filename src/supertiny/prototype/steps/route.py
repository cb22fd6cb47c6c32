"""Chooses the function for the request, or none, under a grammar of the functions' names.

Use when: there are many functions; the arguments can then be filled under the one function's schema.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from supertiny.core.records import Answer, Grammar, Sampling
from supertiny.prototype.bench import Bench, Trace


@dataclass(frozen=True)
class Route:
    """One short completion per request; what it has read of the prompt is reused by `fill`."""

    max_tokens: Annotated[int, Field(ge=1)] = 16
    """Tokens that a function's name may have."""

    calls_per_request = 1.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        none = bench.form.write(Answer())
        names = [[tool.name for tool in trace.request.tools or bench.task.tools] for trace in traces]
        ways = ["|".join(re.escape(word) for word in [*known, none]) for known in names]
        grammars = [Grammar("regex", f"({way})") for way in ways]
        prompts = [bench.prompt(trace) for trace in traces]
        traces, done = bench.complete(traces, prompts, Sampling(self.max_tokens, stop=("\n",)), grammars)
        routed = []
        for trace, known, completion in zip(traces, names, done, strict=True):
            word = completion.text.strip()
            tool = "" if word == none else word if word in known else None  # None: `fill` chooses among all
            routed.append(replace(trace, tool=tool, calls=() if tool == "" else None, raw=completion.text))
        return routed
