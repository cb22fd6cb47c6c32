"""Takes the prompts in the order in which they are given: the baseline that a selector must beat.

Use when: the list is in the author's order of preference, or to see whether selecting helps at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from supertiny.prototype.selectors._probabilities import clean


@dataclass(frozen=True)
class First:
    """The order given; the probabilities are looked at for their shape alone."""

    def rank(self, prompts: Sequence[Any], probabilities: Any) -> list[int]:
        return list(range(len(clean(prompts, probabilities))))
