"""Doubts a draft as far as its own answerer does: 1 - confidence.

Use when: the answerer's confidence is known to fall where it errs; a fallback is at hand for those requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from supertiny.core.records import Answer, Request


@dataclass(frozen=True)
class Confidence:
    """A draft without a confidence says nothing about itself, so it gets a doubt of its own."""

    unknown: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Doubt, 0..1, in a draft whose answerer gives no confidence."""

    def doubt(self, request: Request, draft: Answer) -> float:
        if draft.confidence is None or math.isnan(draft.confidence):
            return self.unknown
        return min(1.0, max(0.0, 1.0 - draft.confidence))
