"""How probable functions are as the beginning of an answer, by a model's log-probabilities of their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from supertiny.core.protocols import Format
from supertiny.core.records import Answer, Call
from supertiny.prototype.bench import Bench, Trace

Shares = NDArray[np.float64]


def label_shares(
    traces: Sequence[Trace], labels: Sequence[Sequence[str]], bench: Bench
) -> tuple[list[Trace], list[Shares]]:
    """Per trace the (labels,) probabilities of its own labels, which sum to 1; "" stands for an answer without a call.

    Gives the traces with the price, too. All is scored in one batch. Raises UserError where the engine cannot score.
    """
    texts = [[_label_text(bench.form, name) for name in names] for names in labels]
    paid, logprobs = bench.score(traces, [bench.prompt(trace) for trace in traces], texts)
    return paid, [normalised(np.exp(np.array(own) - max(own))) for own in logprobs]


def _label_text(form: Format, name: str) -> str:
    """What an answer with this function begins with, up to the end of its name; "" is an answer without a call."""
    if not name:
        return form.write(Answer())
    written = form.write(Answer((Call(name),)))
    place = written.find(name)
    if place < 0:
        return written
    end = place + len(name)
    return written[: end + 1] if written[end : end + 1] == '"' else written[:end]


def calibrated(shares: Shares) -> Shares:
    """(..., rows, labels) shares by each label's mean over the rows, summing to 1 again.

    This takes away what a prompt prefers whatever is asked: calibration by marginalisation, arXiv:2305.14877.
    """
    mean = shares.mean(axis=-2, keepdims=True)
    return normalised(np.divide(shares, mean, out=np.zeros_like(shares), where=mean > 0))


def normalised(shares: Shares) -> Shares:
    """Summing to 1 over the last axis; without any probability there, all are equal."""
    total = shares.sum(axis=-1, keepdims=True)
    even = np.full_like(shares, 1.0 / shares.shape[-1])
    divided: Shares = np.divide(shares, total, out=even, where=total > 0)
    return divided
