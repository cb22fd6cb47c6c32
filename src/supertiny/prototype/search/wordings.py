"""Ranks wordings of the task without a label: by how a model spreads its probability over functions under each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.records import Example
from supertiny.core.task import Task
from supertiny.prototype.bench import Trace
from supertiny.prototype.label_shares import Shares, label_shares
from supertiny.prototype.search.examiner import Examiner
from supertiny.prototype.search.settings import Settings as Search
from supertiny.prototype.search.space import present

_MOST_LABELS = 6  # each is read with every row


def kept_wordings(examiner: Examiner, search: Search, seed: int) -> list[str]:
    """The wordings that the selector lets through, best first; the rows are those of the unlabelled pool.

    Raises UserError where the engine gives no log-probabilities or the task has too little to rank by, and
    BudgetReached before a call that the budget does not cover.
    """
    task, progress = examiner.run.task, examiner.run.progress
    labels = _labels(task)
    rows = _rows(task, search.selector_rows, seed)
    texts = list(dict.fromkeys([examiner.settings.wording, *search.wordings]))
    title = f"label probabilities of {len(texts)} wordings, {len(rows)} rows, {len(labels)} functions"
    with progress.task(title, len(texts), "wordings") as tick:
        tensor = []
        for text in texts:
            tensor.append(_probabilities(examiner, text, rows, labels))
            tick(1)
    order = build("selectors", search.selector, "optimise.selector").rank(texts, np.stack(tensor))
    kept = [texts[place] for place in order[: search.wordings_kept]]
    shown = ", ".join("the recipe's own" if not place else f"{place}" for place in order)
    progress.note(f"  wordings by the selector, best first: {shown}; the first {len(kept)} go on")
    return kept


def _probabilities(examiner: Examiner, wording: str, rows: Sequence[Example], labels: Sequence[str]) -> Shares:
    """(rows, labels) probabilities of the functions under this wording."""
    pipeline = examiner.pipeline(replace(present(examiner.settings), wording=wording))
    traces = [Trace(row.request) for row in rows]
    for step in pipeline.steps:
        if step.calls_per_request == 0:  # examples are shown as in the pipeline; nothing is asked yet
            traces = step.run(traces, pipeline.bench)
    traces = [Trace(trace.request, trace.examples) for trace in traces]
    return np.stack(label_shares(traces, [labels] * len(rows), pipeline.bench)[1])


def _labels(task: Task) -> list[str]:
    """The functions that the labelled rows call most often."""
    called = Counter(call.tool for row in task.labelled for call in (row.answer.calls if row.answer else ()))
    labels = [name for name, _ in called.most_common(_MOST_LABELS)]
    if len(labels) < 2:
        problem = f"optimise.selector: the labelled rows call {len(labels)} functions, and two are needed to rank by"
        raise UserError(problem, "leave the selector out: the wordings are then tried like everything else")
    return labels


def _rows(task: Task, most: int, seed: int) -> list[Example]:
    pool = task.unlabelled or task.labelled
    drawn = np.random.default_rng(seed).permutation(len(pool))[:most]
    return [pool[int(place)] for place in drawn]
