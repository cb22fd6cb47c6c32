"""A pipeline gone through without a model: which prompts it would send, and how many tokens they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from supertiny.core.methods import build, cards
from supertiny.core.nearest import NearestExamples
from supertiny.core.protocols import Done, Engine, Format
from supertiny.core.records import Answer, Completion, Example, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.core.task import Task
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
    price: Price | None = None
    """Of an engine that the step brings along; None for the pipeline's own."""
    scored: bool = False
    """Whether given texts are scored, and none is written."""


def prompt_tokens(prompt: Prompt, count: Count, first: int = 0) -> float:
    """Tokens of a prompt from message `first` on, with the template's own."""
    turns = prompt.messages[first:]
    said = sum(count(str(message.get("content") or "")) + TURN_TOKENS for message in turns)
    return said + (count(prompt.text) if prompt.text else 0.0) + (BEGIN_TOKENS if prompt.messages else 0)


def price_of_engine(block: Any, dollars_per_hour: float = 0.0) -> Price:
    """The price of an engine that is not opened: its own, or where it has none the machine's by the hour."""
    settings = build("engines", block, "prototype.engine")
    if not hasattr(settings, "base_url"):
        return Price(dollars_per_hour=getattr(settings, "dollars_per_hour", 0.0) or dollars_per_hour)
    price: Price = settings.price()
    return price


class _Rehearsal:
    """Stands where an engine would: answers with the row's own answer, or with that of its nearest labelled row."""

    name = "rehearsal"
    price = Price()

    def __init__(self, count: Count, form: Format, answers: Mapping[str, Answer]) -> None:
        self._count = count
        self._form = form
        self._answers = answers
        self._asked: list[tuple[float, float, float]] = []
        self._scored: list[tuple[float, float]] = []
        self._read: Prompt | None = None

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
            completions.append(Completion(text, round(tokens[0]), round(tokens[1]), logprob=0.0))
            if done:
                done(index, completions[-1])
        return completions

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        found = []
        for prompt, text in zip(prompts, continuations, strict=True):
            length = max(1, round(self._count(text)))
            more = 0.0 if prompt == self._read else prompt_tokens(prompt, self._count, prompt.shared)
            self._scored.append((prompt_tokens(prompt, self._count) + length, more + length))
            self._read = prompt
            none = np.zeros((length, top), np.int64)
            tokens, scores = np.zeros(length, np.int64), np.zeros(length, np.float32)
            found.append(TokenScores(tokens, none, none.astype(np.float32), scores))
        return found

    def taken(self, requests: int, calls: float | None = None, price: Price | None = None) -> StepCalls | None:
        """What was asked since the last time, as calls of one step for `requests`; None where nothing was.

        Completions count `calls` for a request, whatever the rehearsal made, where that is given. Scores count as they
        were, and in place of completions; a server writes one token for each.
        """
        asked, scored = self._asked, self._scored
        self._asked, self._scored = [], []
        if scored:
            read, fresh = (_mean(column) for column in zip(*scored, strict=True))
            return StepCalls(len(scored) / requests, read, fresh, 1.0, price, scored=True)
        if not asked:
            return None
        tokens_in, fresh, tokens_out = (_mean(column) for column in zip(*asked, strict=True))
        return StepCalls(len(asked) / requests if calls is None else calls, tokens_in, fresh, tokens_out, price)

    def handed_back(self, prompts: Sequence[Prompt]) -> tuple[float, float, float]:
        """Tokens in, fresh ones and tokens out of prompts to which an answer and a complaint are added."""
        out = _mean([self._count(self._form.write(answer)) + 1 for answer in self._answers.values()])
        more = out + _COMPLAINT_TOKENS + 2 * TURN_TOKENS
        return _mean([prompt_tokens(prompt, self._count) for prompt in prompts]) + more, more, out

    def close(self) -> None:
        return None

    def _text(self, prompt: Prompt, bound: Grammar | None) -> str:
        known = (self._answers.get(str(turn.get("content"))) for turn in reversed(prompt.messages))
        answer = next((found for found in known if found is not None), Answer())
        if bound is not None and bound.kind == "regex":  # one of the functions' names
            return answer.calls[0].tool if answer.calls else self._form.write(Answer())
        return self._form.write(answer)


def rehearse(
    rows: Sequence[Example],
    steps: Sequence[Any],
    task: Task,
    form: Format,
    nearest: NearestExamples,
    count: Count,
) -> list[StepCalls]:
    """What each step asks for a mean request.

    Nothing is spent or carried out. A step of the user's own that makes calls is not run: its prompts are taken to be
    like `fill`'s. Engines that steps bring along are asked as often as here; what else a step is expected to ask goes
    to the pipeline's own, in prompts of the same length where it asked none here. An embedder reads each request once.
    """
    if not rows:
        return []
    answers = _answers(rows, nearest)
    engine = _Rehearsal(count, form, answers)
    brought: list[tuple[Price, _Rehearsal]] = []

    def bring(block: Any) -> Engine:
        brought.append((price_of_engine(block), _Rehearsal(count, form, answers)))
        return brought[-1][1]

    bench = Bench(engine, task, form, nearest, 0, shelf=Shelf(bring), spends=False)
    traces = [Trace(row.request) for row in rows]
    found: list[StepCalls] = []
    words = _mean([count(row.request.text) for row in rows])
    for step in steps:
        before = traces
        if step.calls_per_request == 0 or type(step).__module__.startswith(_OURS):
            traces = step.run(traces, bench)
        vectors = [StepCalls(1.0, words, 0.0, 0.0, embedder.price()) for embedder in _embedders(step)]
        others = [asked for price, other in brought if (asked := other.taken(len(rows), price=price))]
        left = max(0.0, step.calls_per_request - sum(asked.calls for asked in (*vectors, *others)))
        own = engine.taken(len(rows), left)
        if own is None and others:
            own = replace(others[0], calls=left, price=None)
        if own is None and left:
            own = StepCalls(left, *engine.handed_back([bench.prompt(trace) for trace in before]))
        found += [asked for asked in (own, *vectors, *others) if asked]
    return found


def _embedders(step: Any) -> list[Any]:
    """Embedding models of a step and of those within it."""
    own = [step.embedder] if getattr(step, "embedder", None) is not None else []
    blocks = [block for block in getattr(step, "steps", ()) or () if isinstance(block, Mapping)]
    within = [build("steps", block) for block in blocks if block["method"] in cards("steps")]
    return own + [embedder for inner in within for embedder in _embedders(inner)]


def _answers(rows: Sequence[Example], nearest: NearestExamples) -> dict[str, Answer]:
    """An answer for each row's text: its own, or that of the labelled row that is nearest."""
    own = {row.request.text: row.answer for row in rows if row.answer is not None}
    left = [row.request.text for row in rows if row.answer is None]
    near = nearest.nearest(left, 1) if left and nearest.examples else []
    for text, found in zip(left, near, strict=False):
        answer = nearest.examples[found[0][0]].answer if found else None
        own[text] = answer or Answer()
    return own


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
