"""A pipeline gone through without a model: which prompts it would send, and how many tokens they have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from supertiny.core.protocols import Done, Format
from supertiny.core.records import Answer, Completion, Example, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.prototype.bench import Bench, Shelf, Trace

Count = Callable[[str], float]
"""Tokens of a text."""
TURN_TOKENS, BEGIN_TOKENS = 5, 3  # of a chat template: per turn, and for the turn that is asked for
_COMPLAINT_TOKENS = 40  # what a step that hands an answer back adds to the prompt
_OURS = "supertiny.prototype.steps."


@dataclass(frozen=True)
class StepCalls:
    """What one step asks for one request: calls, and tokens of a mean call. `fresh` leaves out what prompts share."""

    calls: float
    tokens_in: float
    fresh: float
    tokens_out: float


def prompt_tokens(prompt: Prompt, count: Count, first: int = 0) -> float:
    """Tokens of a prompt from message `first` on, with the template's own."""
    turns = prompt.messages[first:]
    said = sum(count(str(message.get("content") or "")) + TURN_TOKENS for message in turns)
    return said + (count(prompt.text) if prompt.text else 0.0) + (BEGIN_TOKENS if prompt.messages else 0)


def name_of(prompt: Mapping[str, Any]) -> str:
    """By which a prompt is known again, as the ledger keeps it."""
    return json.dumps([list(prompt["messages"]), prompt["text"]], sort_keys=True, ensure_ascii=False)


class Rehearsal:
    """Stands where an engine would: answers with the row's own answer, or with that of its nearest labelled row."""

    name = "rehearsal"
    price = Price()

    def __init__(self, count: Count, form: Format, answers: Mapping[str, Answer]) -> None:
        self.prompts: list[str] = []
        """Names of the prompts that were completed, since the last `taken`."""
        self._count = count
        self._form = form
        self._answers = answers
        self._asked: list[tuple[float, float, float]] = []
        self._scored: list[float] = []

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        completions = []
        for index, (prompt, bound) in enumerate(zip(prompts, grammar or [None] * len(prompts), strict=True)):
            text = self._text(prompt, bound)
            tokens = prompt_tokens(prompt, self._count), self._count(text) + 1  # and the token that ends it
            self._asked.append((tokens[0], prompt_tokens(prompt, self._count, prompt.shared), tokens[1]))
            self.prompts.append(name_of({"messages": [dict(m) for m in prompt.messages], "text": prompt.text}))
            completions.append(Completion(text, round(tokens[0]), round(tokens[1]), logprob=0.0))
            if done:
                done(index, completions[-1])
        return completions

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        found = []
        for text in continuations:
            length = max(1, round(self._count(text)))
            self._scored.append(length)
            none = np.zeros((length, top), np.int64)
            tokens, scores = np.zeros(length, np.int64), np.zeros(length, np.float32)
            found.append(TokenScores(tokens, none, none.astype(np.float32), scores))
        return found

    def taken(self, requests: int, calls: float, prompts: Sequence[Prompt]) -> StepCalls:
        """What was asked since the last time, as calls of one step for `requests`.

        Of completions, a step makes `calls` for each request whatever the rehearsal had it make; where it made none,
        their prompts are taken to be `prompts` with an answer and a complaint. Scores count as they were.
        """
        asked, scored = self._asked, self._scored
        self._asked, self._scored, self.prompts = [], [], []
        out = mean([self._count(self._form.write(answer)) + 1 for answer in self._answers.values()])
        if not asked:
            more = out + _COMPLAINT_TOKENS + 2 * TURN_TOKENS
            asked = [(prompt_tokens(prompt, self._count) + more, more, out) for prompt in prompts]
        completed = StepCalls(calls, *(mean([row[place] for row in asked]) for place in range(3)))
        if not scored:
            return completed
        pairs = len(scored) / max(1, requests)
        return replace(completed, calls=pairs, tokens_in=mean(scored), fresh=mean(scored), tokens_out=0.0)

    def close(self) -> None:
        return None

    def _text(self, prompt: Prompt, bound: Grammar | None) -> str:
        known = (self._answers.get(str(turn.get("content"))) for turn in reversed(prompt.messages))
        answer = next((found for found in known if found is not None), Answer())
        if bound is not None and bound.kind == "regex":  # one of the functions' names
            return answer.calls[0].tool if answer.calls else self._form.write(Answer())
        return self._form.write(answer)


def rehearse(
    rows: Sequence[Example], steps: Sequence[Any], bench: Bench, count: Count
) -> tuple[list[StepCalls], set[str]]:
    """What each step asks for a mean request, and the names of the prompts of the first step that asks.

    Nothing is spent or carried out. A step of the user's own that makes calls is not run: its prompts are taken to be
    like `fill`'s.
    """
    if not rows:
        return [], set()
    engine = Rehearsal(count, bench.form, _answers(rows, bench))
    bench = replace(bench, engine=engine, shelf=Shelf(lambda block: engine), spends=False)
    traces = [Trace(row.request) for row in rows]
    found: list[StepCalls] = []
    first: set[str] = set()
    for step in steps:
        prompts = [bench.prompt(trace) for trace in traces]
        if step.calls_per_request == 0 or type(step).__module__.startswith(_OURS):
            traces = step.run(traces, bench)
        first = first or set(engine.prompts)
        found.append(engine.taken(len(rows), step.calls_per_request, prompts))
    return found, first


def _answers(rows: Sequence[Example], bench: Bench) -> dict[str, Answer]:
    """An answer for each row's text: its own, or that of the labelled row that is nearest."""
    own = {row.request.text: row.answer for row in rows if row.answer is not None}
    left = [row.request.text for row in rows if row.answer is None]
    near = bench.nearest.nearest(left, 1) if left and bench.nearest.examples else []
    for text, found in zip(left, near, strict=False):
        answer = bench.nearest.examples[found[0][0]].answer if found else None
        own[text] = answer or Answer()
    return own


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
