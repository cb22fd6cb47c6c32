"""Chooses among ways of writing the same answers the one that the student itself finds most natural.

Paper: Ren et al., Efficiently Selecting Response Generation Strategies by Self-Aligned Perplexity, 2025,
arXiv:2502.11779.
Use when: answers hold several calls, or words beside calls.
Differs from the paper: known to us by its abstract and its code's own words: perplexity of an answer behind a solved
row in the student's words. It chooses among teachers and prompts. Here formats spell a call in one way, so what is left
is the order of several calls, and whether words stand beside them.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from supertiny.core.methods import build
from supertiny.core.protocols import Format
from supertiny.core.records import Example, Sampling
from supertiny.core.scoring import exact, typed
from supertiny.core.task import Task
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.curators._reasons import changed_by
from supertiny.prototype.curators._scores import STUDENT, lesson_text, losses_of, student_prompt
from supertiny.prototype.curators._styles import GIVEN, in_style

_Style = Literal["given", "calls_alone", "request_order", "name_order"]
_MOST_NATS = 50.0  # of a mean loss; a text that an engine calls impossible has a perplexity too


@dataclass(frozen=True)
class SelfAlignedPerplexity:
    """One style for all rows: the one of the least mean perplexity on a sample; then the shorter, then the first."""

    styles: tuple[_Style, ...] = ("given", "calls_alone", "request_order", "name_order")
    """Ways of writing an answer that are compared."""
    sample: Annotated[int, Field(ge=1)] = 100
    """Rows, drawn by seed among those that styles write differently, on which they are compared."""
    exemplars: Annotated[int, Field(ge=0)] = 2
    """Solved rows, one at a time before the request: the student's own right answers, else as labelled."""
    tries: Annotated[int, Field(ge=0)] = 8
    """Labelled rows that the student is asked to solve for that."""
    engine: Any = field(default_factory=lambda: STUDENT, metadata={"family": "engines"})
    """What scores: best the student's base model."""
    format: Any = field(default="compact", metadata={"family": "formats"})
    """How the student reads requests and writes calls."""

    needs: ClassVar[tuple[str, ...]] = ("token_scores",)

    def curate(self, examples: Sequence[Example], task: Task, seed: int, *, bench: CuratorBench) -> list[Example]:
        form: Format = build("formats", self.format)
        rows = list(examples)
        written = [{str(style): form.write(in_style(row, style)) for style in self.styles} for row in rows]
        places = [place for place, texts in enumerate(written) if rows[place].answer and len(set(texts.values())) > 1]
        if not places:
            return rows
        best = self._best({place: rows[place] for place in places}, written, task, seed, bench, form)
        for place in places:
            if written[place][best] != form.write(in_style(rows[place], GIVEN)):
                rows[place] = _restyled(rows[place], best)
        return rows

    def _best(
        self,
        rows: Mapping[int, Example],
        written: Sequence[Mapping[str, str]],
        task: Task,
        seed: int,
        bench: CuratorBench,
        form: Format,
    ) -> str:
        """The style of the least mean perplexity on a sample of the rows, which stand by their place in `written`.

        An answer's perplexity is exp(its mean loss) behind one exemplar, averaged over the exemplars.
        """
        drawn = random.Random(seed).sample(list(rows), min(self.sample, len(rows)))
        shown = self._exemplars(task, {rows[place].request.id for place in drawn}, seed, bench, form)
        jobs = [(place, style, text) for place in drawn for style, text in written[place].items()]
        before = [[lesson] for lesson in shown] or [[]]
        prompts = {place: [student_prompt(rows[place], task, form, one) for one in before] for place in drawn}
        pairs = [(prompt, text + form.stop) for place, _, text in jobs for prompt in prompts[place]]
        found = iter(losses_of(pairs, bench, self.engine))
        perplexities: defaultdict[str, list[float]] = defaultdict(list)
        letters: defaultdict[str, int] = defaultdict(int)
        for _, style, text in jobs:
            perplexities[style].append(fmean(math.exp(min(next(found), _MOST_NATS)) for _ in before))
            letters[style] += len(text)
        return min(perplexities, key=lambda style: (round(fmean(perplexities[style]), 6), letters[style]))

    def _exemplars(self, task: Task, scored: set[str], seed: int, bench: CuratorBench, form: Format) -> list[str]:
        """Solved rows as the student writes them: its own right answers first, then labelled ones."""
        labelled = [row for row in task.labelled if row.answer is not None and row.request.id not in scored]
        drawn = random.Random(seed + 1).sample(labelled, min(len(labelled), self.tries + self.exemplars))
        given = [lesson_text(row, form.write(in_style(row, GIVEN)), task, form) for row in drawn]
        own, tried = [], drawn[self.exemplars :]
        if tried and self.exemplars:
            prompts = [student_prompt(row, task, form, given[: self.exemplars]) for row in tried]
            done = bench.scorer(self.engine).complete(prompts, Sampling(96, stop=(form.stop,)))
            for row, completion in zip(tried, done, strict=True):
                text = completion.text.removesuffix(form.stop).strip()
                if _is_right(row, text, task, form):
                    own.append(lesson_text(row, text, task, form))
        return [*own, *given][: self.exemplars]


def _is_right(row: Example, text: str, task: Task, form: Format) -> bool:
    try:
        read = typed(form.decode(text), task.tool_map)
    except ValueError:
        return False
    return row.answer is not None and exact(read.calls, row.answer.calls, task.tool_map)


def _restyled(row: Example, style: str) -> Example:
    return replace(
        row, answer=in_style(row, style), provenance=changed_by("self_aligned_perplexity", row, written=style)
    )
