"""Drops rows whose request stands in valid or test, in the same or in nearly the same words.

Use when: always where rows were made or imported; a student that has seen the exam is measured too well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from supertiny.core.leaks import SIMILARITY, Leak, asked_text, find_leaks
from supertiny.core.records import Example
from supertiny.core.task import Task
from supertiny.prototype.curators._reasons import left_out


@dataclass(frozen=True)
class LeakGuard:
    """Looks at the words of valid and test alone, never at their answers; only to drop what is too near to them."""

    similarity: Annotated[float, Field(gt=0, le=1)] = SIMILARITY
    """Jaccard similarity of character 5-grams from which two requests count as one; 1 looks for same words alone."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        rows = {str(place): asked_text(row.request.messages) for place, row in enumerate(examples)}
        leaks: dict[str, Leak] = {}
        for split, asked in (("valid", task.valid), ("test", task.test)):
            texts = {f"{split} {row.request.id}": asked_text(row.request.messages) for row in asked}
            # Each row is looked up among those that are asked later, so that all its rows are found, not one of them.
            leaks |= {leak.left: leak for leak in find_leaks(rows, texts, self.similarity)}
        kept = []
        for place, row in enumerate(examples):
            leak = leaks.get(str(place))
            if leak is None:
                kept.append(row)
            else:
                left_out(row, f"similarity {leak.similarity:.2f} to row {leak.right}")
        return kept
