"""The floor: answers with the calls of the nearest known example. What any model must beat."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from supertiny.core.errors import UserError
from supertiny.core.files import read_rows
from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Answer, Cost, Example, Request

if TYPE_CHECKING:
    from supertiny.core.run import Run


class TfidfFloor:
    """TF-IDF and the nearest example: no model, no understanding."""

    name = "tfidf_floor"
    bytes = 0

    def __init__(self, examples: Sequence[Example]) -> None:
        """`examples` without an answer are left out. Raises UserError where none is left."""
        known = [example for example in examples if example.answer is not None]
        if not known:
            raise UserError("the floor has no example with an answer", "labelled.jsonl needs rows with calls")
        self._index = NearestExamples(known)

    @classmethod
    def open(cls, run: Run) -> TfidfFloor:
        """Over the task's labelled rows and what the teacher's pipeline made of the pool, where it has run."""
        made = run.folder / "prototype" / "train.jsonl"
        rows = [Example.from_json(row) for row in read_rows(made)] if made.is_file() else []
        labelled = {example.request.id for example in run.task.labelled}
        return cls([*run.task.labelled, *(row for row in rows if row.request.id not in labelled)])

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request; its confidence is the cosine similarity of the example it was taken from."""
        began = time.perf_counter()
        nearest = self._index.nearest([request.text for request in requests], 1)
        share = (time.perf_counter() - began) / max(1, len(requests))
        answers = []
        for found in nearest:
            place, similarity = found[0]
            example = self._index.examples[place]
            known = example.answer or Answer()
            text = f"nearest: {example.request.text}"
            answers.append(Answer(known.calls, known.text, Cost(seconds=share), self.name, min(1.0, similarity), text))
        return answers
