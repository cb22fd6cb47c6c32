"""Keeps what the verifier does not fail and the votes do not doubt.

Paper: From Large to Super-Tiny, 2025, arXiv:2504.13471 (rejection-sampling fine-tuning keeps verified answers).
Use when: always; an unverified label teaches its mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from supertiny.core.records import Example
from supertiny.core.task import Task


@dataclass(frozen=True)
class Verified:
    """Gold rows always stay."""

    least_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of votes that an answer needs; answers without votes pass."""
    keep_abstained: bool = True
    """Whether answers stay that the verifier can neither pass nor fail, such as "no call"."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        return [example for example in examples if self._keeps(example)]

    def _keeps(self, example: Example) -> bool:
        if example.provenance.get("source") == "labelled":
            return True
        if example.answer is None or example.verdict is None or example.verdict.outcome == "fail":
            return False
        sure = example.answer.confidence is None or example.answer.confidence >= self.least_confidence
        return sure and (example.verdict.outcome == "pass" or self.keep_abstained)
