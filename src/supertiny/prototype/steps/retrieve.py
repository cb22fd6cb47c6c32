"""Shows the nearest labelled examples with the request.

Paper: Liu et al., What Makes Good In-Context Examples for GPT-3?, 2021, arXiv:2101.06804.
Use when: there are labelled rows; nearest ones beat fixed ones by far on narrow tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from supertiny.prototype.bench import Bench, Trace


@dataclass(frozen=True)
class Retrieve:
    """Nearest by TF-IDF of words and characters; the nearest stands last, next to the request."""

    examples: Annotated[int, Field(ge=1)] = 8
    """Examples shown with each request."""

    calls_per_request = 0.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        labelled = bench.nearest.examples
        found = bench.nearest.nearest([trace.request.text for trace in traces], self.examples)
        shown = [tuple(labelled[index] for index, _ in reversed(row)) for row in found]
        return [replace(trace, examples=rows) for trace, rows in zip(traces, shown, strict=True)]
