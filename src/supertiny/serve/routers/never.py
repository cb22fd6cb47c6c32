"""Trusts every draft: the baseline that a router must beat.

Use when: there is no fallback, or to see what the artifact does alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from supertiny.core.records import Answer, Request


@dataclass(frozen=True)
class Never:
    """Doubt is 0 whatever the draft says."""

    def doubt(self, request: Request, draft: Answer) -> float:
        return 0.0
