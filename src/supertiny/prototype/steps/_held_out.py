"""What is learned from the labelled rows, and of each labelled row what is known without having seen it.

So a step that learns answers a labelled row as it would answer a new request: by the rows of the other parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped, unused-ignore]

from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Call, Example, Request
from supertiny.prototype.bench import Bench
from supertiny.prototype.steps._reader import Reader, beside, reader_of, scaled

PARTS = 5
Shares = NDArray[np.float64]
Functions = tuple[str, ...]  # names of the functions that a request is turned into, in order; none is ()
_STATES_LENGTH = 1.0  # as long as the row of TF-IDF beside them
_LEAST_SHARE = 1e-6  # of a set of functions that the other parts do not have


def functions_in(calls: Sequence[Call]) -> Functions:
    return tuple(sorted({call.tool for call in calls}))


def own_rows(bench: Bench) -> list[Example]:
    """Labelled rows of the task's own functions."""
    return [row for row in bench.task.labelled if row.answer is not None and not row.request.tools]


def part_of(rows: Sequence[Example], seed: int) -> dict[str, int]:
    """The part, 0 to PARTS - 1, that each row is drawn into, by its id; parts are equally large, but for one row."""
    places = list(range(len(rows)))
    Random(seed).shuffle(places)
    return {rows[place].request.id: number % PARTS for number, place in enumerate(places)}


class FunctionClassifier:
    """Which functions a text asks for: logistic regression over TF-IDF of words and pieces of words, and states."""

    def __init__(self, rows: Sequence[Example], reader: Reader | None = None) -> None:
        self._index = NearestExamples(rows)
        self._reader = reader
        self._bring = scaled(reader.means([row.request.text for row in rows]), _STATES_LENGTH) if reader else None
        sets = [functions_in(row.answer.calls) for row in rows if row.answer is not None]
        self.sets = sorted(set(sets))
        places = [self.sets.index(one) for one in sets]
        several = len(self.sets) > 1
        vectors = self._vectors([row.request.text for row in rows])
        self._model = LogisticRegression(C=30.0, max_iter=1000).fit(vectors, places) if several else None

    def __call__(self, texts: Sequence[str]) -> Shares:
        """(texts, sets) probabilities."""
        if self._model is None:
            return np.ones((len(texts), len(self.sets)))
        return np.asarray(self._model.predict_proba(self._vectors(texts)), dtype=np.float64)

    def _vectors(self, texts: Sequence[str]) -> Any:
        vectors = self._index.vectors(texts)
        if self._reader is None or self._bring is None:
            return vectors
        return beside(vectors, self._bring(self._reader.means(texts)))


class KnownFunctions:
    """The probabilities of sets of functions, of which `gold` has each labelled row's own."""

    def __init__(self, rows: Sequence[Example], seed: int, reader: Reader | None = None) -> None:
        self._classifier = FunctionClassifier(rows, reader)
        self.sets = self._classifier.sets
        self.gold = [self.sets.index(functions_in(row.answer.calls)) for row in rows if row.answer is not None]
        self.held_out = np.full((len(rows), len(self.sets)), _LEAST_SHARE)
        self._places: Mapping[str, int] = {row.request.id: place for place, row in enumerate(rows)}
        parts = part_of(rows, seed)
        for part in sorted(set(parts.values())):
            rest = [row for row in rows if parts[row.request.id] != part]
            if not rest:
                continue
            out = [place for place, row in enumerate(rows) if parts[row.request.id] == part]
            known = FunctionClassifier(rest, reader)
            columns = [self.sets.index(one) for one in known.sets]
            self.held_out[np.ix_(out, columns)] = known([rows[place].request.text for place in out])

    def __call__(self, requests: Sequence[Request]) -> Shares:
        """(requests, sets) probabilities; of a labelled row, what those say that have not seen it."""
        shares = self._classifier([request.text for request in requests])
        for place, request in enumerate(requests):
            if request.id in self._places:
                shares[place] = self.held_out[self._places[request.id]]
        return shares


def known_functions(bench: Bench, reader: str = "") -> KnownFunctions | None:
    """Learned once for all steps with this reader; None where there is no labelled row to learn from."""
    rows = own_rows(bench)
    if not rows:
        return None
    model = reader_of(reader, bench)
    key = f"functions of the labelled rows {reader}"
    found: KnownFunctions = bench.shelf.once(key, lambda: KnownFunctions(rows, bench.seed, model))
    return found
