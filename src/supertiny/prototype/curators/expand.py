"""Has the teacher write new requests from the functions' words and seed rows, labels and verifies them.

Paper: Yue et al., Building a Family of Data Augmentation Models, 2024, arXiv:2412.04871 (instruction expansion).
Use when: there are few unlabelled requests, or some functions are hardly ever asked for.
Differs from the paper: no expander is trained, the teacher's own model writes; values to mention are drawn from the
schemas, and a row stays only where the pipeline's label names the function that was asked for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from supertiny.core.files import hash_of
from supertiny.core.leaks import SIMILARITY, NearTexts, normalised
from supertiny.core.records import Answer, Example, Prompt, Request, Sampling
from supertiny.core.task import Task
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.curators._reasons import is_labelled
from supertiny.prototype.curators._writing import REQUESTS, Wish, read_requests, wishes_of, writing_prompt


@dataclass(frozen=True)
class Expand:
    """Functions take turns; what stands in the rows, in valid or in test, even nearly, is not taken in."""

    rows: Annotated[int, Field(ge=1)] = 200
    """New requests that are wanted before labelling; verified rows are fewer."""
    texts: Annotated[int, Field(ge=1, le=50)] = 6
    """Requests that the teacher writes in one go, all for one function."""
    seeds: Annotated[int, Field(ge=1)] = 4
    """Solved rows of the function that are shown; another function's where it has none."""
    rounds: Annotated[int, Field(ge=1)] = 2
    """Times that the teacher is asked for what is still missing."""
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard similarity of character 5-grams from which a new request repeats a known one."""
    temperature: float = 0.9
    """Sampling temperature of the writing."""
    max_tokens: int = 400
    """Tokens that one list of requests may have."""

    needs: ClassVar[tuple[str, ...]] = ("live_teacher",)

    def model_calls(self, rows: Sequence[Example], calls_per_request: float) -> float:
        """Expected calls: lists that are written, and requests that the pipeline answers."""
        return -(-self.rows // self.texts) + self.rows * calls_per_request

    def curate(self, examples: Sequence[Example], task: Task, seed: int, *, bench: CuratorBench) -> list[Example]:
        solved = [row for row in examples if row.answer is not None and row.answer.readable]
        solved = [row for row in solved if is_labelled(row)] or solved  # gold shows best what a function is asked for
        if not solved:
            return list(examples)
        written = self._write(solved, examples, task, seed, bench)
        requests = [Request.from_text(text, _name(wish, text)) for text, wish in written]
        answers = bench.answer(requests) if requests else []
        made = [
            self._row(request, answer, wish, task)
            for request, answer, (_, wish) in zip(requests, answers, written, strict=True)
        ]
        return [*examples, *(row for row in made if row is not None)]

    def _write(
        self, solved: Sequence[Example], examples: Sequence[Example], task: Task, seed: int, bench: CuratorBench
    ) -> list[tuple[str, Wish]]:
        """New requests, each with the wish that it was written for."""
        generator = random.Random(seed)
        asked = NearTexts(min(SIMILARITY, self.similarity), _said(task.valid, task.test))
        known = NearTexts(self.similarity, _said(examples, task.unlabelled))
        found: list[tuple[str, Wish]] = []
        for turn in range(self.rounds):
            count = -(-(self.rows - len(found)) // self.texts)
            wishes = wishes_of(task, solved, count, self.texts, self.seeds, generator)
            for wish, texts in zip(wishes, self._lists(wishes, task, seed + turn, bench), strict=True):
                for text in texts[: self.rows - len(found)]:
                    plain = normalised(text)
                    if not known.near(plain) and not asked.near(plain):
                        known.add(plain)
                        found.append((text, wish))
            if len(found) >= self.rows:
                break
        return found

    def _lists(self, wishes: Sequence[Wish], task: Task, seed: int, bench: CuratorBench) -> list[list[str]]:
        """One list of requests per wish; a list that was cut off gives what of it is whole."""
        prompts: list[Prompt] = [writing_prompt(task, wish, self.texts) for wish in wishes]
        sampling = Sampling(self.max_tokens, self.temperature, seed)
        grammars = [REQUESTS] * len(prompts)
        done = bench.teacher.engine.complete(prompts, sampling, grammars, lambda *_: bench.teacher.advance(1))
        return [read_requests(completion.text) for completion in done]

    def _row(self, request: Request, answer: Answer, wish: Wish, task: Task) -> Example | None:
        wanted = {wish.function} if wish.function else set()
        if not answer.readable or {call.tool for call in answer.calls} != wanted:
            return None
        verdict = task.verify(request, answer.calls)
        if verdict.outcome == "fail":
            return None
        origins = [row.request.id for row in wish.seeds]
        provenance = {
            "source": "expand",
            "by": "pipeline",
            "made_by": "expand",
            "origin": origins[0],
            "from": origins,
            "function": wish.function,
        }
        return Example(request, answer, verdict, provenance)


def _said(*splits: Sequence[Example]) -> Iterator[str]:
    return (normalised(row.request.text) for rows in splits for row in rows)


def _name(wish: Wish, text: str) -> str:
    return f"{wish.seeds[0].request.id}/expand-{hash_of(text)[:10]}"
