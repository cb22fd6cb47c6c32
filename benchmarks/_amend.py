"""Learns from the labelled rows where the model errs, and mends its marks.

Paper: Wolpert, Stacked Generalization, 1992; with a language model below: Xu et al., Small Models are Valuable Plug-ins
for Large Language Models, 2023, arXiv:2305.08848.
Use when: the labelled rows have conventions that a prompt does not bring home, such as which small words are values.
Differs from the papers: the small model has the last word; what it looks at are the language model's own marks, and
where several ways of asking are given, on which words they agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sklearn.model_selection import StratifiedKFold

from benchmarks._guess_function import name_of
from benchmarks._mark import Mark
from benchmarks._slots import Lesson, SlotTagger
from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Call, Example
from supertiny.core.scoring import exact
from supertiny.prototype.bench import Bench, Trace


@dataclass(frozen=True)
class Amend:
    """A word tagger over the request and the model's marks, learned from labelled rows that the model marked unseen."""

    views: tuple[Mark, ...] = (Mark(),)
    """Ways of asking; the first is the step before this one, the others are asked here. Without any, no model is."""
    folds: int = 5
    """Parts into which the labelled rows are split; each is marked with the rows of the others."""

    @property
    def calls_per_request(self) -> float:
        return float(max(0, len(self.views) - 1))

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        tagger = SlotTagger(self.lessons(bench))
        first, seen = list(traces), [[_arguments(trace)] for trace in traces]
        for view in self.views[1:]:
            marked = view.run(first, bench)
            first = [replace(trace, cost=again.cost) for trace, again in zip(first, marked, strict=True)]
            for hints, again in zip(seen, marked, strict=True):
                hints.append(_arguments(again))
        return [_amended(t, hints[: len(self.views)], tagger) for t, hints in zip(first, seen, strict=True)]

    def lessons(self, bench: Bench) -> list[Lesson]:
        """Labelled rows with what each view took for their arguments, without having seen them."""
        hints = [[_arguments(trace) for trace in self.marks(view, bench)] for view in self.views]
        return [
            (row.request.text, name_of(row), _gold(row), [column[place] for column in hints])
            for place, row in enumerate(bench.task.labelled)
        ]

    def marks(self, view: Mark, bench: Bench) -> list[Trace]:
        """Labelled rows as a view marks them when it has not seen them: one model call each, once."""
        rows = bench.task.labelled
        marked: dict[int, Trace] = {}
        for learned, held in _folds(rows, self.folds, bench.seed):
            rest = tuple(rows[place] for place in learned)
            room = replace(bench, task=replace(bench.task, labelled=rest), nearest=NearestExamples(rest))
            traces = [Trace(rows[place].request, tool=name_of(rows[place])) for place in held]
            marked |= dict(zip(held, view.run(traces, room), strict=True))
        return [marked[place] for place in range(len(rows))]

    def held_out_share(self, bench: Bench) -> float:
        """Labelled rows that come out exactly right, each by a tagger that learned from the other folds."""
        rows, lessons = bench.task.labelled, self.lessons(bench)
        right = 0
        for learned, held in _folds(rows, self.folds, bench.seed + 1):
            tagger = SlotTagger([lessons[place] for place in learned])
            for place in held:
                text, tool, gold, hints = lessons[place]
                found = Call(tool, tagger(text, tool, hints)[0])
                right += exact([found], [Call(tool, gold)], bench.task.tool_map)
        return right / max(1, len(rows))


def _folds(rows: Sequence[Example], count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """(places to learn from, places held out), functions spread evenly."""
    folds = StratifiedKFold(count, shuffle=True, random_state=seed)
    pairs = folds.split(rows, [name_of(row) for row in rows])
    return [([int(place) for place in learned], [int(place) for place in held]) for learned, held in pairs]


def _gold(row: Example) -> dict[str, Any]:
    return dict(row.answer.calls[0].arguments) if row.answer and row.answer.calls else {}


def _arguments(trace: Trace) -> dict[str, Any]:
    return dict(trace.calls[0].arguments) if trace.calls else {}


def _amended(trace: Trace, hints: Sequence[dict[str, Any]], tagger: SlotTagger) -> Trace:
    tool = trace.calls[0].tool if trace.calls else trace.tool
    if not tool:
        return trace
    arguments, score = tagger(trace.request.text, tool, hints)
    return replace(trace, calls=(Call(tool, arguments),), confidence=math.exp(min(score, 0.0)))
