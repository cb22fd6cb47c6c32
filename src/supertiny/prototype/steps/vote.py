"""Samples several answers and takes the one that most agree on; the share of votes is the confidence.

Paper: Wang et al., Self-Consistency, 2022, arXiv:2203.11171; `stop` is Aggarwal et al., Let's Sample Step by Step,
2023, arXiv:2305.11860.
Use when: the labels should be trusted, or routing at serving time needs a confidence.
Differs from the paper: the answer so far has a vote too and wins ties; answers that the verifier fails have none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Annotated, Literal

from pydantic import Field

from supertiny.core.records import Sampling
from supertiny.core.scoring import plain_call
from supertiny.prototype.bench import Bench, Trace

_Name = tuple[tuple[str, str], ...]  # of an answer: equal for answers that mean the same


@dataclass(frozen=True)
class Vote:
    """`samples` further answers for each request, drawn with `temperature`, one round of all requests at a time."""

    samples: int = 2
    """Answers drawn beside the one at hand."""
    temperature: float = 0.7
    """Sampling temperature."""
    max_tokens: int = 96
    """Tokens that an answer may have."""
    stop: Literal["never", "decided", "likely"] = "never"
    """When no more is drawn for a request: never early; when the samples left cannot change the winner; or when the
    leader is the majority's choice with the probability `sure`. The confidence is then the share of votes cast."""
    sure: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """With `likely`: probability, under a Beta posterior of the two strongest answers, that the leader is ahead."""
    verifier: Literal["strict", "leads", "ignored"] = "strict"
    """Answers that fail it: have no vote; have one only while no other passes; have one like all others."""
    only_failed: bool = False
    """Whether to draw only where the answer at hand fails the verifier or cannot be read: a rescue after `check`."""

    @property
    def calls_per_request(self) -> float:
        return self.samples * (0.3 if self.only_failed else 1.0) * (0.7 if self.stop != "never" else 1.0)

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        hands = list(traces)
        open_ = [place for place, trace in enumerate(hands) if not self.only_failed or bench.complaint(trace)]
        asked = list(open_)
        ballots = {place: [hands[place]] if hands[place].calls is not None else [] for place in asked}
        prompts = {place: bench.prompt(hands[place]) for place in asked}
        for sample in range(self.samples):
            open_ = [p for p in open_ if sample == 0 or not self._is_over(ballots[p], self.samples - sample, bench)]
            if not open_:
                break
            sampling = Sampling(self.max_tokens, self.temperature, seed=bench.seed * 1000 + sample + 1)
            given = [hands[place] for place in open_]
            tools = [bench.tools_of(trace) for trace in given]
            drawn = bench.call(given, [prompts[place] for place in open_], sampling, tools)
            for place, trace in zip(open_, drawn, strict=True):
                ballots[place].append(trace)
                hands[place] = hands[place].billed_as(trace)
        for place in asked:
            hands[place] = self._elected(hands[place], ballots[place], bench)
        return hands

    def _elected(self, trace: Trace, ballot: Sequence[Trace], bench: Bench) -> Trace:
        valid = self._valid(ballot, bench)
        if not valid:
            return replace(trace, confidence=0.0)
        names = [_name(t, bench) for t in valid]
        winner, votes = Counter(names).most_common(1)[0]  # first seen wins ties, and the answer so far comes first
        best = valid[names.index(winner)]
        cast = self.samples + 1 if self.stop == "never" else len(ballot)
        return replace(best, confidence=votes / cast).billed_as(trace)

    def _valid(self, ballot: Sequence[Trace], bench: Bench) -> list[Trace]:
        read = [trace for trace in ballot if trace.calls is not None]
        if self.verifier == "ignored":
            return read
        passing = [trace for trace in read if not bench.complaint(trace)]
        return passing or (read if self.verifier == "leads" else [])

    def _is_over(self, ballot: Sequence[Trace], left: int, bench: Bench) -> bool:
        if self.stop == "never":
            return False
        valid = self._valid(ballot, bench)
        if self.verifier == "leads" and any(bench.complaint(trace) for trace in valid):
            return False  # one that passes would take all
        votes: Counter[_Name] = Counter(_name(trace, bench) for trace in valid)
        return _is_decided(votes, left) or (self.stop == "likely" and _lead_probability(votes) >= self.sure)


def _is_decided(votes: Counter[_Name], left: int) -> bool:
    """Whether `left` more votes cannot change the winner; of equals the one seen first wins."""
    if not votes:
        return False
    leader, most = votes.most_common(1)[0]
    order = list(votes)
    ahead = order.index(leader)
    rivals = [count + left + (place < ahead) for place, count in enumerate(votes.values()) if place != ahead]
    return max([left, *rivals]) <= most


def _lead_probability(votes: Counter[_Name]) -> float:
    """Probability that the leader is more likely than the second, under Beta(votes + 1, votes of the second + 1)."""
    if not votes:
        return 0.0
    first, second = [*sorted(votes.values(), reverse=True), 0][:2]
    tries = first + second + 1
    return float(sum(comb(tries, hits) for hits in range(first + 1)) / 2**tries)


def _name(trace: Trace, bench: Bench) -> _Name:
    tools = {tool.name: tool for tool in bench.tools_of(trace)}
    return tuple(sorted(plain_call(call, tools) for call in trace.calls or ()))
