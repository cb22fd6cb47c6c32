"""Chooses the function for the request, or none: by a grammar of the functions' names, or by their probabilities.

Paper: Yang et al., Improving Probability-based Prompt Selection Through Unified Evaluation and Analysis, 2023,
arXiv:2305.14877, whose calibration by marginalisation `logprob` uses.
Use when: there are many functions; the arguments can then be filled under the one function's schema.
Differs from the paper: the mean is over the requests that are answered together, where eight have the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from supertiny.core.records import Answer, Grammar, Sampling
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.label_shares import Shares, calibrated, label_shares

_LEAST_REQUESTS = 8  # a mean over fewer says nothing


@dataclass(frozen=True)
class Route:
    """One short completion per request; what it has read of the prompt is reused by `fill`.

    Of candidates that an earlier step left it chooses one. A request that needs several functions keeps them: `fill`
    accepts further calls beside the chosen function's.
    `logprob` reads a prompt for each function: it suits few functions, or engines that share what they have read. The
    engine openvino does not, and loads its model anew whenever scoring and writing take turns.
    """

    max_tokens: Annotated[int, Field(ge=1)] = 16
    """Tokens that a function's name may have."""
    by: Literal["grammar", "logprob"] = "grammar"
    """What decides: one completion that is a function's name, or the log-probability of each name, all in one batch."""
    calibrate: bool = True
    """With `logprob`: whether each function's probability is divided by its mean over requests."""
    keep: Annotated[int, Field(ge=1)] = 1
    """With `logprob`: functions that are left to choose from; of several, later steps see these alone."""

    def __post_init__(self) -> None:
        if self.by == "grammar" and self.keep > 1:
            raise ValueError("keep: a grammar chooses one function; take by: logprob to keep several")

    @property
    def calls_per_request(self) -> float:
        return 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        return ("token_scores",) if self.by == "logprob" else ()

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        return self._by_logprob(traces, bench) if self.by == "logprob" else self._by_grammar(traces, bench)

    def _by_grammar(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        none = bench.form.write(Answer())
        names = [_names(trace, bench) for trace in traces]
        ways = ["|".join(re.escape(word) for word in [*known, none]) for known in names]
        grammars = [Grammar("regex", f"({way})") for way in ways]
        prompts = [bench.prompt(trace) for trace in traces]
        traces, done = bench.complete(traces, prompts, Sampling(self.max_tokens, stop=("\n",)), grammars)
        routed = []
        for trace, known, completion in zip(traces, names, done, strict=True):
            word = completion.text.strip()
            tool = "" if word == none else word if word in known else None  # None: `fill` chooses among all
            left = trace.candidates if tool is None else ()
            calls = () if tool == "" else None
            routed.append(replace(trace, tool=tool, candidates=left, calls=calls, raw=completion.text))
        return routed

    def _by_logprob(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        labels = [("", *_names(trace, bench)) for trace in traces]
        paid, shares = label_shares(traces, labels, bench)
        if self.calibrate:
            shares = _calibrated_together(labels, shares)
        return [self._routed(*row, none=bench.form.write(Answer())) for row in zip(paid, labels, shares, strict=True)]

    def _routed(self, trace: Trace, names: Sequence[str], shares: Shares, none: str) -> Trace:
        order = [names[place] for place in np.argsort(-shares, kind="stable")]
        if self.keep == 1:
            tool = order[0]
            return replace(trace, tool=tool, candidates=(), calls=None if tool else (), raw=tool or none)
        # Whether a call is made at all is left to `fill`: it may write none whatever the candidates are.
        kept = tuple(name for name in order[: self.keep] if name)
        return replace(trace, tool=None, candidates=kept, calls=None, raw=" ".join(kept))


def _names(trace: Trace, bench: Bench) -> list[str]:
    """The functions to choose from: those that an earlier step has left, or all."""
    names = [tool.name for tool in bench.tools_of(trace)]
    return [name for name in names if not trace.candidates or name in trace.candidates]


def _calibrated_together(labels: Sequence[tuple[str, ...]], shares: Sequence[Shares]) -> list[Shares]:
    """Each request's shares, calibrated by those of all that had the same functions to choose from."""
    found = list(shares)
    for names in set(labels):
        alike = [place for place, own in enumerate(labels) if own == names]
        if len(alike) >= _LEAST_REQUESTS:
            for place, row in zip(alike, calibrated(np.stack([shares[place] for place in alike])), strict=True):
                found[place] = row
    return found
