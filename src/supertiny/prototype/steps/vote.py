"""Samples several answers and takes the one that most agree on; the share of votes is the confidence.

Paper: Wang et al., Self-Consistency, 2022, arXiv:2203.11171; `adaptive` is after Aggarwal et al., Let's Sample Step by
Step, 2023, arXiv:2305.11860.
Use when: the labels should be trusted, or routing at serving time needs a confidence.
Differs from the paper: the answer so far has a vote too and wins ties; answers that the verifier fails have none; an
adaptive vote ends when it is decided for certain, not when it is likely to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from supertiny.core.records import Sampling
from supertiny.core.scoring import plain_call
from supertiny.prototype.bench import Bench, Trace

_Name = tuple[tuple[str, str], ...]  # of an answer: equal for answers that mean the same
_Ballot = tuple[_Name | None, Trace]  # without a name it has no vote: it cannot be read, or the verifier fails it


@dataclass(frozen=True)
class Vote:
    """`samples` further answers for each request, drawn with `temperature`, one round of all requests at a time."""

    samples: Annotated[int, Field(ge=1)] = 2
    """Answers drawn beside the one at hand."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature."""
    max_tokens: Annotated[int, Field(ge=1)] = 96
    """Tokens that an answer may have."""
    adaptive: bool = False
    """Whether no more is drawn for a request once the samples left cannot change its winner; the confidence is then
    the share of the answers that were drawn."""
    only_failed: bool = False
    """Whether to draw only where the answer at hand fails the verifier or cannot be read: a rescue after `check`."""

    @property
    def calls_per_request(self) -> float:
        return self.samples * (0.3 if self.only_failed else 1.0) * (0.7 if self.adaptive else 1.0)

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        hands = list(traces)
        asked = [place for place, trace in enumerate(hands) if not self.only_failed or bench.complaint(trace)]
        ballots = {place: [_cast(hands[place], bench)] for place in asked}
        prompts = {place: bench.prompt(hands[place]) for place in asked}
        open_ = asked
        for sample in range(self.samples):
            if self.adaptive and sample:
                left = self.samples - sample
                open_ = [place for place in open_ if not _is_decided(_votes(ballots[place]), left)]
            if not open_:
                break
            sampling = Sampling(self.max_tokens, self.temperature, seed=bench.seed * 1000 + sample + 1)
            given = [hands[place] for place in open_]
            tools = [bench.tools_of(trace) for trace in given]
            drawn = bench.call(given, [prompts[place] for place in open_], sampling, tools)
            for place, trace in zip(open_, drawn, strict=True):
                ballots[place].append(_cast(trace, bench))
                hands[place] = hands[place].billed_as(trace)
        for place in asked:
            hands[place] = _elected(hands[place], ballots[place])
        return hands


def _cast(trace: Trace, bench: Bench) -> _Ballot:
    if bench.complaint(trace):
        return None, trace
    tools = {tool.name: tool for tool in bench.tools_of(trace)}
    return tuple(sorted(plain_call(call, tools) for call in trace.calls or ())), trace


def _votes(ballots: Sequence[_Ballot]) -> Counter[_Name]:
    """Votes by answer, in the order in which they were first cast."""
    return Counter(name for name, _ in ballots if name is not None)


def _elected(trace: Trace, ballots: Sequence[_Ballot]) -> Trace:
    votes = _votes(ballots)
    if not votes:
        return replace(trace, confidence=0.0)
    winner, count = votes.most_common(1)[0]  # first seen wins ties, and the answer so far comes first
    best = next(drawn for name, drawn in ballots if name == winner)
    return replace(best, confidence=count / len(ballots)).billed_as(trace)


def _is_decided(votes: Counter[_Name], left: int) -> bool:
    """Whether `left` more votes cannot change the winner; of equals the one seen first wins."""
    if not votes:
        return False
    leader, most = votes.most_common(1)[0]
    order = list(votes)
    ahead = order.index(leader)
    rivals = [count + left + (place < ahead) for place, count in enumerate(votes.values()) if place != ahead]
    return max([left, *rivals]) <= most
