"""How near an answer's calls are to the trusted ones, argument by argument; what cannot be read scores -1.

Paper: STAR (Sim-RL), 2026, arXiv:2602.03022.
Use when: exact answers are rare: an answer that is half right earns half, so that every group has signal.
Differs from the paper: strings are compared by their longest common subsequence of characters, so that every script
counts; words are compared where the trusted answer has no call, and count only where the sample has none either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import LCSseq
from scipy.optimize import linear_sum_assignment

from supertiny.core.records import Answer, Call, Example, Tool
from supertiny.core.scoring import similarity
from supertiny.training.practice import Sample
from supertiny.training.rewards._trusted import functions_of, trusted


@dataclass(frozen=True)
class Similarity:
    """(R_format - 1) + R_format * (R_calls + R_text), in [-1, 1].

    R_calls is the similarity of matched calls over the size of the union of calls, so that calls too many cost as much
    as calls too few. Calls match within equal function names, by the best assignment.
    """

    def __call__(self, example: Example, samples: Sequence[Sample]) -> list[float]:
        gold, tools = trusted(example), functions_of(example)
        return [-1.0 if sample.answer is None else _nearness(sample.answer, gold, tools) for sample in samples]


def _nearness(answer: Answer, gold: Answer, tools: Mapping[str, Tool]) -> float:
    if gold.calls:
        return _calls(answer.calls, gold.calls, tools)
    if answer.calls:
        return 0.0
    # A trusted answer without words says that no function serves; then any words say so as well.
    return _text(answer.text, gold.text) if gold.text else 1.0


def _calls(predicted: Sequence[Call], gold: Sequence[Call], tools: Mapping[str, Tool]) -> float:
    counts, wanted = Counter(call.tool for call in predicted), Counter(call.tool for call in gold)
    shared = counts & wanted
    total = 0.0
    for name in shared:
        left = [call for call in predicted if call.tool == name]
        right = [call for call in gold if call.tool == name]
        near = np.array([[similarity([p], [g], tools) for g in right] for p in left])
        rows, columns = linear_sum_assignment(near, maximize=True)
        total += float(near[rows, columns].sum())
    return min(1.0, total / (len(predicted) + len(gold) - shared.total()))


def _text(predicted: str, gold: str) -> float:
    return 2 * LCSseq.similarity(predicted, gold) / (len(predicted) + len(gold))
