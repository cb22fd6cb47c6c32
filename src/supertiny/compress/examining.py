"""How a step is measured: the same rows of valid, on the engine that the artifact will run on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.compress.gate import Sitting
from supertiny.compress.trust import Probe, asked, read
from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.protocols import Engine, Format
from supertiny.core.records import Answer, Example, Request
from supertiny.core.scoring import exact, is_exact, wilson_interval
from supertiny.core.task import Task
from supertiny.formats._answerer import ModelAnswerer

_TIMED_ROWS = 15


@dataclass(frozen=True)
class Paper:
    """What a model answered on valid."""

    answers: tuple[Answer, ...]
    figures: dict[str, Any]
    """exact, low, high, n, p50_seconds (of single requests)."""


@dataclass(frozen=True)
class Room:
    """The rows of valid and how they are put."""

    task: Task
    form: Format
    max_tokens: int
    rows: int | None = None
    """How many of valid's rows; None is all."""

    @property
    def valid(self) -> Sequence[Example]:
        return self.task.valid[: self.rows]

    def examine(self, engine: Engine, timed: bool = True) -> Paper:
        """Answers of all rows, without a grammar: it would hide where two models differ.

        Where they are `timed`, some are asked once more, each by itself.
        """
        requests = [row.request for row in self.valid]
        answers = tuple(self.answers(engine, requests))
        timed_requests = requests[: _TIMED_ROWS if timed else 0]
        single = [self.answers(engine, [request])[0].cost.seconds for request in timed_requests]
        hits = int(sum(self.hits(answers)))
        low, high = wilson_interval(hits, len(requests))
        figures = {"exact": hits / max(1, len(requests)), "low": low, "high": high, "n": len(requests)}
        return Paper(answers, {**figures, "p50_seconds": statistics.median(single) if single else None})

    def answers(self, engine: Engine, requests: Sequence[Request]) -> list[Answer]:
        """What the model writes freely, one answer per request, in order."""
        answerer = ModelAnswerer("", engine, self.form, self.task.tools, self.max_tokens, constrained=False)
        return answerer.answer(requests)

    def hits(self, answers: Sequence[Answer]) -> tuple[float, ...]:
        """1 for each row of valid that is answered exactly, else 0."""
        gold = [row.answer.calls if row.answer else () for row in self.valid]
        return tuple(float(is_exact(a, g, self.task.tool_map)) for a, g in zip(answers, gold, strict=True))

    def sit(self, engine: Engine, paper: Paper, probes: Mapping[str, Sequence[Probe]]) -> Sitting:
        """What the gate compares: the paper's rows, how sure the model was of them, and the trust meters.

        A request that the paper answers, or another meter asks, is not asked again.
        """
        sure = [answer.confidence for answer in paper.answers]
        known = [value for value in sure if value is not None]
        told = {_key(row.request): answer for row, answer in zip(self.valid, paper.answers, strict=True)}
        requests = asked(probes)
        new = {key: request for request in requests if (key := _key(request)) not in told}
        told |= zip(new, self.answers(engine, list(new.values())) if new else (), strict=True)
        meters = read(probes, [told[_key(request)] for request in requests])
        return Sitting(self.hits(paper.answers), tuple(known) if len(known) == len(sure) else None, meters)

    def open(self, block: Any, model: Path) -> Engine:
        """The engine of a recipe's block on a model file or folder."""
        engine: Engine = build("engines", block, "compress.engine").open(model)
        return engine

    def differing(self, left: Sequence[Answer], right: Sequence[Answer]) -> list[str]:
        """Ids of the rows on which two models call differently; what nobody can read is no "no call"."""
        return [
            row.request.id
            for row, one, other in zip(self.valid, left, right, strict=True)
            if one.readable != other.readable or not exact(one.calls, other.calls, self.task.tool_map)
        ]

    def check_prompts(self, engine: Any, tokenizer: Any) -> None:
        """Raises UserError where the artifact's engine reads a prompt as other tokens than the student was taught."""
        for row in self.valid:
            prompt = self.form.encode(row.request, self.task.tools)
            taught = list(tokenizer.encode(prompt.text, add_special_tokens=False))
            if list(engine.tokens(prompt)) != taught:
                raise UserError(
                    f"row {row.request.id} of valid is read as other tokens by the artifact than by the student",
                    "the tokenizer was not carried over; report this with the base model's name",
                )


def _key(request: Request) -> str:
    """Equal for requests that ask the same, whatever their id."""
    return repr((request.messages, request.tools))
