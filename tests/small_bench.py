"""A curator's bench without a model: a teacher that writes and labels by rule, and scores that a text alone decides."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from supertiny.core.methods import build
from supertiny.core.nearest import NearestExamples
from supertiny.core.protocols import Engine
from supertiny.core.records import Answer, Call, Example, Grammar, Prompt, Request, Sampling, TokenScores
from supertiny.core.task import Task
from supertiny.prototype.bench import Bench, Shelf
from supertiny.prototype.curators._bench import CuratorBench
from tests.fake_engine import Author, FakeEngine

Judge = Callable[[Prompt, str], float]


def by_hash(prompt: Prompt, text: str) -> float:
    """A loss between 0 and 5 nats, the same for the same text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 2**24 * 5


class ScoringEngine(FakeEngine):
    """Scores a text by a rule: its mean loss per token, a token for every four characters."""

    def __init__(self, judge: Judge = by_hash, author: Author | None = None, name: str = "scoring") -> None:
        super().__init__(author or (lambda *_: "~"), name=name)
        self.judge = judge
        self.scored: list[list[tuple[Prompt, str]]] = []

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        self.scored.append(list(zip(prompts, continuations, strict=True)))
        return [self._scores(prompt, text) for prompt, text in self.scored[-1]]

    def _scores(self, prompt: Prompt, text: str) -> TokenScores:
        count = max(1, len(text) // 4)
        own = np.full(count, -self.judge(prompt, text), dtype=np.float32)
        none = np.zeros((count, 0))
        return TokenScores(np.arange(count), none.astype(np.int64), none.astype(np.float32), own)


def writes_requests(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """What a teacher would write for `expand`: a request per line of wanted values, each in other words."""
    asked = prompt.messages[-1]["content"]
    function = next(iter(re.findall(r"that the function (\S+) serves", asked)), "Nothing")
    lines = asked.partition("words:\n")[2].partition("\nExamples")[0].split("\n")
    words = [f"{_word(asked, sampling.seed, place)} {function} at {line}" for place, line in enumerate(lines)]
    return json.dumps({"requests": words}, ensure_ascii=False)


def _word(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:30]


def labels(requests: Sequence[Request]) -> list[Answer]:
    """What a pipeline would answer to these requests."""
    answers = []
    for request in requests:
        found = re.search(r"(Turn\w+|Dim) at - area (\w+)(?:, level (\d+))?", request.text)
        calls = ()
        if found:
            level = {"level": int(found.group(3))} if found.group(3) else {}
            calls = (Call(found.group(1), {"area": found.group(2), **level}),)
        answers.append(Answer(calls, by="pipeline"))
    return answers


def small_bench(
    task: Task,
    folder: Path,
    teacher: Engine | None = None,
    student: Engine | None = None,
    answer: Callable[[Sequence[Request]], list[Answer]] = labels,
    name: str = "disagreement",
) -> CuratorBench:
    engine = teacher or FakeEngine(writes_requests)
    scorer = student or ScoringEngine()
    shelf = Shelf(lambda block: scorer)
    bench = Bench(engine, task, build("formats", "compact"), NearestExamples(task.labelled), 0, shelf=shelf)
    return CuratorBench(bench, answer, folder, name)


def curated(
    block: Any, rows: Sequence[Example], task: Task, seed: int, folder: Path, bench: CuratorBench | None = None
) -> list[Example]:
    """The rows after a curator, which is handed a bench where it needs one."""
    curator = build("curators", block)
    more = {"bench": bench or small_bench(task, folder)} if getattr(curator, "needs", ()) else {}
    kept: list[Example] = curator.curate(rows, task, seed, **more)
    return kept
