"""What `stack` learns from labelled rows and the answers that its steps gave to them, and how it mends by that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from supertiny.core.records import Answer, Call, Example
from supertiny.core.scoring import typed
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.steps._held_out import KnownFunctions, functions_in, own_rows, part_of
from supertiny.prototype.steps._reader import Reader
from supertiny.prototype.steps._spans import as_listed
from supertiny.prototype.steps._tagger import Lesson, Tagger

Calls = tuple[Call, ...] | None
_NATS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0)


class Learned:
    """The weight of an answer's function, and taggers of the words, from labelled rows with their hints."""

    def __init__(
        self,
        rows: Sequence[Example],
        answered: Sequence[Trace],
        hints: Sequence[Sequence[Calls]],
        known: KnownFunctions,
        bench: Bench,
        reader: Reader | None = None,
    ) -> None:
        self._reader = reader
        self._sets = known.sets
        self._parts = part_of(own_rows(bench), bench.seed)
        self._lessons = [
            (
                self._parts[row.request.id],
                Lesson(row.request.text, call.tool, call.arguments, _arguments(said, call.tool)),
            )
            for row, said in zip(rows, hints, strict=True)
            for call in (row.answer.calls if row.answer and len(row.answer.calls) == 1 else ())
        ]
        self._taggers: dict[int | None, Tagger] = {}
        self._nats = self._weight(rows, answered, known([row.request for row in rows]))

    def _weight(self, rows: Sequence[Example], answered: Sequence[Trace], shares: Any) -> float:
        """Nats that an answer's function is worth, so that most labelled rows come out right; of equals the middle."""
        gold = [functions_in(row.answer.calls) for row in rows if row.answer]
        right = []
        for nats in _NATS:
            chosen = [self._sets[int(self._scores(*row, nats).argmax())] for row in zip(answered, shares, strict=True)]
            right.append(sum(one == own for one, own in zip(chosen, gold, strict=True)))
        best = [nats for nats, hits in zip(_NATS, right, strict=True) if hits == max(right)]
        return best[len(best) // 2]

    def _scores(self, trace: Trace, shares: Any, nats: float) -> Any:
        """(sets,) log-probabilities, the answer's own set raised."""
        scores = np.log(np.maximum(shares, 1e-12))
        if trace.calls is not None and functions_in(trace.calls) in self._sets:
            scores[self._sets.index(functions_in(trace.calls))] += nats
        return scores - np.logaddexp.reduce(scores)

    def mended(self, trace: Trace, hints: Sequence[Calls], shares: Any, bench: Bench) -> Trace:
        """The answer with its function as weighed and its arguments as tagged, where the verifier does not fail that.

        `shares` are the (sets,) probabilities of the request's functions by its words alone.
        """
        said = None if trace.calls is None else functions_in(trace.calls)
        unknown = said is not None and said not in self._sets
        if trace.request.tools or unknown or len(trace.calls or ()) > 1:
            return trace
        scores = self._scores(trace, shares, self._nats)
        chosen, score = self._sets[int(scores.argmax())], float(scores.max())
        calls: Calls = trace.calls if said == chosen else () if not chosen else (Call(chosen[0]),)
        if len(chosen) > 1 or calls is None:
            return trace
        if calls:
            calls, worth = self._with_arguments(trace, calls[0], hints, bench)
            score += worth
        new = replace(trace, confidence=math.exp(min(0.0, score)))
        if calls != trace.calls:
            new = replace(new, calls=calls, text="", results=())
        return trace if bench.complaint(new) else new

    def _with_arguments(
        self, trace: Trace, call: Call, hints: Sequence[Calls], bench: Bench
    ) -> tuple[tuple[Call, ...], float]:
        """The call with its copied arguments as tagged, and the log-probability of the tags."""
        tagger = self._tagger(self._parts.get(trace.request.id))
        if not tagger.knows(call.tool):
            return (call,), 0.0
        found, score = tagger(trace.request.text, call.tool, _arguments(hints, call.tool))
        tool = bench.task.tool_map[call.tool]
        schemas: Mapping[str, Any] = tool.parameters.get("properties", {})
        kept = {name: value for name, value in call.arguments.items() if name not in tagger.copied[call.tool]}
        stated = {name: as_listed(text, schemas.get(name)) for name, text in found.items()}
        return typed(Answer((Call(call.tool, kept | stated),)), {tool.name: tool}).calls, score

    def _tagger(self, part: int | None) -> Tagger:
        """The tagger of all lessons; for a labelled row, of those outside of its part."""
        if part not in self._taggers:
            self._taggers[part] = Tagger([lesson for own, lesson in self._lessons if own != part], self._reader)
        return self._taggers[part]


def _arguments(hints: Sequence[Calls], tool: str) -> list[Mapping[str, Any]]:
    """What each hint says of this function's arguments, where it is one call of it."""
    return [said[0].arguments if said and len(said) == 1 and said[0].tool == tool else {} for said in hints]
