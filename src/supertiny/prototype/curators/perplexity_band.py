"""Keeps rows that are neither too easy nor too hard for a small model: its loss lies between two quantiles.

Paper: Yang et al., MindLLM, 2023, arXiv:2310.15777 (a band of entropy under the base model); Liu et al., POINTS, 2024,
arXiv:2409.04828 (pre-training texts of the lowest perplexity).
Use when: there are more rows than the student can see; the easiest teach nothing, the hardest are often wrong.
Differs from the paper: both are known to us by abstracts and summaries, the measure is ours: the mean loss of a token.
Quantiles are taken within each function, so that rare ones stay; labelled rows always stay. POINTS' own filter is
`of: request` with `low: 0`, `high: 0.2` and `per_function: false`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.records import Example
from supertiny.core.task import Task
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.curators._reasons import is_labelled, left_out
from supertiny.prototype.curators._scores import STUDENT, answer_pairs, losses_of, request_pairs

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class PerplexityBand:
    """Loss is the mean negative log-probability of a token; its exponential is the perplexity."""

    low: Share = 0.1
    """Quantile of the loss below which a row is too easy."""
    high: Share = 0.9
    """Quantile of the loss above which a row is too hard."""
    of: Literal["answer", "request"] = "answer"
    """What is scored: the answer after its request, or the request's own words, which finds garbled ones."""
    per_function: bool = True
    """Whether quantiles are taken within each function."""
    engine: Any = field(default_factory=lambda: STUDENT, metadata={"family": "engines"})
    """What scores: best the student's base model."""
    format: Any = field(default="compact", metadata={"family": "formats"})
    """How the student reads requests and writes calls."""

    needs: ClassVar[tuple[str, ...]] = ("token_scores",)

    def curate(self, examples: Sequence[Example], task: Task, seed: int, *, bench: CuratorBench) -> list[Example]:
        if self.low >= self.high:
            raise UserError(f"perplexity_band: low is {self.low} and high {self.high}", "low must be the smaller one")
        made = [row for row in examples if not is_labelled(row) and row.answer is not None]
        by_answer = self.of == "answer"
        pairs = answer_pairs(made, task, build("formats", self.format)) if by_answer else request_pairs(made)
        losses = losses_of(pairs, bench, self.engine)
        groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for place, row in enumerate(made):
            groups[self._group(row)].append(place)
        outside = set()
        for places in groups.values():
            found = [losses[place] for place in places]
            # The edges are rows' own losses, rounded outwards: a group of few rows stays whole.
            least = float(np.quantile(found, self.low, method="lower"))
            most = float(np.quantile(found, self.high, method="higher"))
            for place in places:
                if not least <= losses[place] <= most:
                    outside.add(made[place].request.id)
                    left_out(made[place], f"loss {losses[place]:.3f} is outside {least:.3f} to {most:.3f}")
        return [row for row in examples if row.request.id not in outside]

    def _group(self, row: Example) -> tuple[str, ...]:
        if not self.per_function or row.answer is None:
            return ()
        return tuple(sorted({call.tool for call in row.answer.calls}))
