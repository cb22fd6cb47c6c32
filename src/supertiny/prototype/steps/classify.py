"""Chooses the function by a linear classifier of the labelled rows; where that is unsure, leaves the likely ones.

Paper: Vovk, Cross-conformal predictors, 2012, arXiv:1208.0806.
Use when: there are some ten labelled rows a function; it takes no model call, and what comes after may be shorter.
Differs from the paper: one threshold for all rows, from their shares in five folds; the best function is always left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.steps._held_out import Functions, KnownFunctions, known_functions


@dataclass(frozen=True)
class Classify:
    """One function left is chosen; of several, later steps see these alone.

    Functions without a labelled row are always left. Requests with functions of their own stay as they are.
    """

    risk: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Share of requests, as far as they are like the labelled rows, whose function may be missing among those left."""

    calls_per_request = 0.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        done = list(traces)
        known = known_functions(bench)
        todo = [place for place, trace in enumerate(traces) if not trace.request.tools]
        if known is None or not todo:
            return done
        labelled = {name for one in known.sets for name in one}
        unseen = [(tool.name,) for tool in bench.task.tools if tool.name not in labelled]
        least = self._least_share(known)
        for place, row in zip(todo, known([traces[place].request for place in todo]), strict=True):
            left = [one for one, share in zip(known.sets, row, strict=True) if share >= least]
            done[place] = _left(traces[place], [*(left or [known.sets[int(row.argmax())]]), *unseen])
        return done

    def _least_share(self, known: KnownFunctions) -> float:
        """The share that all but `risk` of the labelled rows give to their own functions, unseen."""
        own = np.sort(known.held_out[np.arange(len(known.gold)), known.gold])
        missed = math.floor((len(own) + 1) * self.risk) - 1  # how many of the lowest may be missed
        return float(own[missed]) if missed >= 0 else 0.0


def _left(trace: Trace, left: Sequence[Functions]) -> Trace:
    names = tuple(dict.fromkeys(name for one in left for name in one))
    if names and (() in left or len(names) > 1):
        return replace(trace, tool=None, candidates=names)
    return replace(trace, tool=names[0], candidates=()) if names else replace(trace, tool="", calls=(), candidates=())
