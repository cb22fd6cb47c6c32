"""What a curator that needs more than the rows is handed as `bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.core.protocols import Engine
from supertiny.core.records import Answer, Request
from supertiny.prototype.bench import Bench


@dataclass(frozen=True)
class CuratorBench:
    """By the words of a curator's `needs`: `live_teacher`, `token_scores` and `person`."""

    teacher: Bench
    """The teacher's engine behind the run's ledger, with format and nearest examples; open for `live_teacher` alone."""
    answer: Callable[[Sequence[Request]], list[Answer]]
    """The whole pipeline, for `live_teacher`: one answer per request, in order."""
    folder: Path
    """The run's folder, where a `person` finds what waits for an answer."""
    name: str
    """The curator's own in the recipe; a number tells apart those that are there several times."""

    def scorer(self, block: Any) -> Engine:
        """The engine of a block, for `token_scores`, behind the run's ledger; equal blocks share one."""
        return self.teacher.wrap(self.teacher.shelf.engine(block))
