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
    return paid, [_own_shares(*row) for row in zip(texts, logprobs, strict=True)]


def _own_shares(texts: Sequence[str], logprobs: Sequence[float]) -> Shares:
    """Shares of answers that begin with each text and with no longer one of them.

    What begins with a longer name, such as SetVolumeRelative, begins with SetVolume too, and is counted once.
    """
    masses = np.exp(np.array(logprobs) - max(logprobs))
    own = masses.copy()
    for place, text in enumerate(texts):
        shorter = [other for other, begun in enumerate(texts) if begun != text and text.startswith(begun)]
        if shorter:
            own[max(shorter, key=lambda other: len(texts[other]))] -= masses[place]
    return normalised(np.maximum(own, 0.0))


def _label_text(form: Format, name: str) -> str:
    """What an answer with this function begins with, up to the end of its name; "" is an answer without a call."""
    if not name:
        return form.write(Answer())
    written = form.write(Answer((Call(name),)))
    # The name stands where another function's would: a key or a rule of the format may have the same letters.
    other = form.write(Answer((Call("b" if name.startswith("a") else "a"),)))
    begins = next(place for place, (one, two) in enumerate(zip(written, other, strict=False)) if one != two)
    place = written.find(name, begins)
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
