"""Chooses among ways of writing the same answers the one that the student itself finds most natural.

Paper: Ren et al., Efficiently Selecting Response Generation Strategies by Self-Aligned Perplexity, 2025,
arXiv:2502.11779.
Use when: answers hold several calls or words of their own, or rows come with answers in several styles.
Differs from the paper: read from its abstract, as the perplexity of an answer behind solved rows in the student's own
words. Formats sort a call's arguments, so the styles are the order of several calls, words beside calls, and whatever
rows of one request name as `style` in their provenance (wordings of a text, other teachers).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from supertiny.core.leaks import asked_text
from supertiny.core.methods import build
from supertiny.core.protocols import Format
from supertiny.core.records import Example, Sampling
from supertiny.core.scoring import exact, typed
from supertiny.core.task import Task
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.curators._reasons import is_labelled, left_out
from supertiny.prototype.curators._scores import STUDENT, lesson_text, loss_of, student_prompt
from supertiny.prototype.curators._styles import GIVEN, in_style

_Style = Literal["given", "calls_alone", "request_order", "name_order"]


@dataclass(frozen=True)
class SelfAlignedPerplexity:
    """One style for all rows, by the mean over a sample; equal means go to the shorter answers, then to the first."""

    styles: tuple[_Style, ...] = ("given", "calls_alone", "request_order", "name_order")
    """Ways of writing an answer that are compared."""
    sample: Annotated[int, Field(ge=1)] = 100
    """Rows, drawn by seed among those that styles write differently, on which they are compared."""
    exemplars: Annotated[int, Field(ge=1)] = 2
    """Solved rows before the request: what the student wrote itself and right, where it can; else as labelled."""
    tries: Annotated[int, Field(ge=0)] = 8
    """Labelled rows that the student is asked to solve for that."""
    engine: Any = field(default_factory=lambda: STUDENT, metadata={"family": "engines"})
    """What scores: best the student's base model."""
    format: Any = field(default="compact", metadata={"family": "formats"})
    """How the student reads requests and writes calls."""

    needs: ClassVar[tuple[str, ...]] = ("token_scores",)

    def curate(self, examples: Sequence[Example], task: Task, seed: int, *, bench: CuratorBench) -> list[Example]:
        form: Format = build("formats", self.format)
        rows = self._one_wording(examples, task, seed, bench, form)
        written = [{str(style): form.write(in_style(row, style)) for style in self.styles} for row in rows]
        places = [place for place, texts in enumerate(written) if rows[place].answer and len(set(texts.values())) > 1]
        if not places:
            return rows
        candidates = [[(style, written[place][style]) for style in self.styles] for place in places]
        best = self._best([rows[place] for place in places], candidates, task, seed, bench, form)
        for place in places:
            if written[place][best] != form.write(in_style(rows[place], GIVEN)):
                rows[place] = _restyled(rows[place], best)
        return rows

    def _one_wording(
        self, examples: Sequence[Example], task: Task, seed: int, bench: CuratorBench, form: Format
    ) -> list[Example]:
        """Of rows that answer one request in several named styles, those of the best style for all requests."""
        groups: defaultdict[str, dict[str, Example]] = defaultdict(dict)
        for row in examples:
            if row.answer is not None and row.provenance.get("style") and not is_labelled(row):
                groups[asked_text(row.request.messages)].setdefault(str(row.provenance["style"]), row)
        several = [group for group in groups.values() if len(group) > 1]
        if not several:
            return list(examples)
        candidates = [[(style, form.write(row.answer)) for style, row in g.items() if row.answer] for g in several]
        best = self._best([next(iter(group.values())) for group in several], candidates, task, seed, bench, form)
        dropped = set()
        for group in several:
            kept = best if best in group else next(iter(group))
            for style, row in group.items():
                if style != kept:
                    dropped.add(row.request.id)
                    left_out(row, f"its style {style!r} is less natural to the student than {kept!r}")
        return [row for row in examples if row.request.id not in dropped]

    def _best(
        self,
        rows: Sequence[Example],
        candidates: Sequence[Sequence[tuple[str, str]]],
        task: Task,
        seed: int,
        bench: CuratorBench,
        form: Format,
    ) -> str:
        """The style of the least mean loss on a sample of the rows."""
        drawn = random.Random(seed).sample(range(len(rows)), min(self.sample, len(rows)))
        shown = self._exemplars(task, {rows[place].request.id for place in drawn}, seed, bench, form)
        jobs = [(place, style, text) for place in drawn for style, text in candidates[place]]
        prompts = [student_prompt(rows[place], task, form, shown) for place, *_ in jobs]
        scored = bench.scores.of(self.engine, prompts, [text + form.stop for *_, text in jobs])
        of_row: defaultdict[int, list[float]] = defaultdict(list)
        for (place, *_), score in zip(jobs, scored, strict=True):
            of_row[place].append(loss_of(score))
        losses: defaultdict[str, list[float]] = defaultdict(list)
        letters: defaultdict[str, int] = defaultdict(int)
        for (place, style, text), score in zip(jobs, scored, strict=True):
            # Against the mean of the row's own styles: a style is no worse for being there where requests are hard.
            losses[style].append(loss_of(score) - fmean(of_row[place]))
            letters[style] += len(text)
        return min(losses, key=lambda style: (round(fmean(losses[style]), 6), letters[style] / len(losses[style])))

    def _exemplars(self, task: Task, scored: set[str], seed: int, bench: CuratorBench, form: Format) -> list[str]:
        """Solved rows as the student writes them: its own right answers first, then labelled ones."""
        labelled = [row for row in task.labelled if row.answer is not None and row.request.id not in scored]
        drawn = random.Random(seed + 1).sample(labelled, min(len(labelled), self.tries + self.exemplars))
        given = [lesson_text(row, form.write(in_style(row, GIVEN)), task, form) for row in drawn]
        own, tried = [], drawn[self.exemplars :]
        if tried:
            prompts = [student_prompt(row, task, form, given[: self.exemplars]) for row in tried]
            done = bench.scores.engine(self.engine).complete(prompts, Sampling(96, stop=(form.stop,)))
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
    provenance = {**row.provenance, "origin": row.request.id, "made_by": "self_aligned_perplexity", "written": style}
    return replace(row, answer=in_style(row, style), provenance=provenance)
