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
from supertiny.prototype.curators._reasons import is_labelled, left_out


@dataclass(frozen=True)
class Verified:
    """Gold rows always stay."""

    least_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of votes that an answer needs; answers without votes pass."""
    keep_abstained: bool = True
    """Whether answers stay that the verifier can neither pass nor fail, such as "no call"."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        kept = []
        for example in examples:
            problem = self._problem(example)
            if problem:
                left_out(example, problem)
            else:
                kept.append(example)
        return kept

    def _problem(self, example: Example) -> str:
        """Why an example is not kept; nothing where it is."""
        if is_labelled(example):
            return ""
        if example.answer is None or example.verdict is None:
            return "nobody judged it"
        if example.verdict.outcome == "fail":
            return f"the verifier fails it: {example.verdict.reason}"
        confidence = example.answer.confidence
        if confidence is not None and confidence < self.least_confidence:
            return f"only {confidence:.0%} of the votes are for it"
        if example.verdict.outcome != "pass" and not self.keep_abstained:
            return f"the verifier abstains: {example.verdict.reason}"
        return ""
