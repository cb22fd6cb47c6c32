"""What a curator that needs more than the rows is handed as `bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from supertiny.core.records import Answer, Request
from supertiny.prototype.bench import Bench
from supertiny.prototype.curators._scores import Scores


@dataclass(frozen=True)
class CuratorBench:
    """By the words of a curator's `needs`: `live_teacher`, `token_scores` and `person`."""

    teacher: Bench
    """The teacher's engine behind the run's ledger, with format and nearest examples; open for `live_teacher` alone."""
    answer: Callable[[Sequence[Request]], list[Answer]]
    """The whole pipeline, for `live_teacher`: one answer per request, in order."""
    scores: Scores
    """Log-probabilities by small models; all curators of a run share them."""
    folder: Path
    """The run's folder, where a `person` finds what waits for an answer."""
