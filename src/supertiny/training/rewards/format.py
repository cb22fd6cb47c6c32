"""1 for an answer that can be read and that the verifier does not refuse, 0 for one it refuses, -1 for none.

Paper: Qian et al., ToolRL, 2025, arXiv:2504.13958.
Use when: a pupil must first learn to write calls at all; never alone to the end, for it does not ask what is right.
Differs from the paper: the verifier's word takes the place of a pattern of tags; no call where some are trusted is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supertiny.core.records import Example
from supertiny.training.practice import Sample


@dataclass(frozen=True)
class Format:
    """Whether the calls are of known functions with arguments that their schemas admit."""

    def __call__(self, example: Example, samples: Sequence[Sample]) -> list[float]:
        return [_wellformed(example, sample) for sample in samples]


def _wellformed(example: Example, sample: Sample) -> float:
    if sample.answer is None:
        return -1.0
    # No call can be ill-formed that is not made: silence would be the safest way to the most.
    silent = example.answer is not None and len(example.answer.calls) > 0 and not sample.answer.calls
    return 0.0 if silent or sample.verdict.outcome == "fail" else 1.0
