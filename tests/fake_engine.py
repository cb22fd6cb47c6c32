"""An engine without a model: what it writes is a function of the prompt, and every call is counted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores

Author = Callable[[Prompt, Sampling, Grammar | None], str]


class FakeEngine:
    """Finishes the prompts of a batch in a random order, as a batching engine does."""

    def __init__(self, author: Author | None = None, price: Price | None = None, name: str = "fake") -> None:
        self.author = author or (lambda prompt, sampling, grammar: f"re: {prompt.text}")
        self.price = price or Price()
        self.name = name
        self.tokens_in = 10
        self.asked: list[tuple[Prompt, Sampling, Grammar | None]] = []
        self.batches: list[int] = []

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        grammars = list(grammar) if grammar is not None else [None] * len(prompts)
        self.batches.append(len(prompts))
        self.asked += [(prompt, sampling, g) for prompt, g in zip(prompts, grammars, strict=True)]
        written = [self._write(prompt, sampling, g) for prompt, g in zip(prompts, grammars, strict=True)]
        order = list(range(len(prompts)))
        random.Random(1).shuffle(order)
        for index in order:
            if done:
                done(index, written[index])
        return written

    def _write(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> Completion:
        text = self.author(prompt, sampling, grammar)
        for stop in sampling.stop:
            text = text.partition(stop)[0]
        return Completion(text, tokens_in=self.tokens_in, tokens_out=2, seconds=0.5)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        raise AssertionError("nobody asked for scores")

    def close(self) -> None:
        pass
