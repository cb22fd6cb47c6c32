"""A fake engine that also scores: a text that the right answer begins with is likely, all others are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from supertiny.core.records import Price, Prompt, TokenScores
from tests.fake_engine import Author, FakeEngine


class FakeScorer(FakeEngine):
    """`right` says what the answer to a prompt should be; each text has one token."""

    def __init__(
        self, author: Author | None = None, price: Price | None = None, right: Callable[[Prompt], str] = lambda _: ""
    ) -> None:
        super().__init__(author, price)
        self.right = right
        self.scored = 0
        self.score_batches: list[int] = []

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        assert top == 0, "not every engine gives the best tokens"
        self.scored += len(prompts)
        self.score_batches.append(len(prompts))
        return [self._score(prompt, text) for prompt, text in zip(prompts, continuations, strict=True)]

    def _score(self, prompt: Prompt, text: str) -> TokenScores:
        logprob = self.logprob(prompt, text)
        none = np.empty((1, 0))
        return TokenScores(np.array([1]), none.astype(int), none, np.array([logprob], dtype=np.float32))

    def logprob(self, prompt: Prompt, text: str) -> float:
        return -0.1 if self.right(prompt).startswith(text) else -4.0
