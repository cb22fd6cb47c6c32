"""Chooses the function by a small classifier learned from the labelled rows; asks the model only where that is unsure.

Use when: functions are few and unlike: a model call that names one of them is then spent on one request in ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from sklearn.model_selection import StratifiedKFold

from benchmarks._slots import FunctionGuess
from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Example, Prompt, Sampling
from supertiny.prototype.bench import Bench, Trace

_FOLDS = 5


@dataclass(frozen=True)
class GuessFunction:
    """The classifier's word counts where rows of such a probability were right often enough, held out in folds."""

    least_right: float = 0.99
    """Share of held-out labelled rows that must be right above the probability from which nobody is asked."""
    examples: int = 8
    """Solved examples that the model sees where it is asked."""
    ask: bool = True
    """Whether the model is asked at all."""

    calls_per_request = 0.1

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        texts, names = _texts_and_names(bench.task.labelled)
        guess = FunctionGuess(texts, names)
        chances = guess([trace.request.text for trace in traces])
        routed = [replace(t, tool=guess.names[int(row.argmax())]) for t, row in zip(traces, chances, strict=True)]
        doubt = _threshold(tuple(texts), tuple(names), self.least_right, bench.seed)
        unsure = [place for place, row in enumerate(chances) if row.max() < doubt] if self.ask else []
        asked = [routed[place] for place in unsure]
        paid, done = bench.complete(asked, self._prompts(asked, bench, guess.names), Sampling(16, stop=("\n",)))
        for place, trace, completion in zip(unsure, paid, done, strict=True):
            word = completion.text.strip()
            routed[place] = replace(trace, tool=word if word in guess.names else trace.tool)
        return routed

    def _prompts(self, traces: Sequence[Trace], bench: Bench, names: Sequence[str]) -> list[Prompt]:
        words = f"Name the function that the user's request asks for: {', '.join(names)}."
        index = NearestExamples(bench.task.labelled)
        found = index.nearest([trace.request.text for trace in traces], self.examples)
        prompts = []
        for trace, row in zip(traces, found, strict=True):
            turns = []
            for place, _ in reversed(row):
                text, name = index.examples[place].request.text, name_of(index.examples[place])
                turns += [{"role": "user", "content": text}, {"role": "assistant", "content": name}]
            prompts.append(Prompt(({"role": "system", "content": words}, *turns, *trace.request.messages), shared=1))
        return prompts


def name_of(example: Example) -> str:
    """The function of an example's one call."""
    return example.answer.calls[0].tool if example.answer and example.answer.calls else ""


def _texts_and_names(examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    known = [example for example in examples if name_of(example)]
    return [example.request.text for example in known], [name_of(example) for example in known]


@lru_cache(maxsize=8)
def _threshold(texts: tuple[str, ...], names: tuple[str, ...], least_right: float, seed: int) -> float:
    """The least probability above which held-out rows are right often enough; 1 where there is none."""
    chance, right = np.zeros(len(texts)), np.zeros(len(texts), dtype=bool)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    for learned, held in folds.split(texts, names):
        guess = FunctionGuess([texts[i] for i in learned], [names[i] for i in learned])
        rows = guess([texts[i] for i in held])
        chance[held] = rows.max(axis=1)
        right[held] = [guess.names[best] == names[i] for i, best in zip(held, rows.argmax(axis=1), strict=True)]
    order = np.argsort(-chance)
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    fit = np.flatnonzero(shares >= least_right)
    return float(chance[order][fit[-1]]) if len(fit) else 1.0
