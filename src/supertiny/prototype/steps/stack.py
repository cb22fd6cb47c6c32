"""Learns from labelled rows where its steps err, and mends the function and the copied arguments of their answers.

Paper: Wolpert, Stacked Generalization, 1992; Cohen and Carvalho, Stacked Sequential Learning, 2005; of the reader:
Springer et al., Repetition Improves Language Model Embeddings, 2024, arXiv:2402.15449.
Use when: some hundred labelled rows have conventions that a prompt does not bring home, such as where a value ends.
Differs from the papers: below are a language model's answers, above small linear models of the words that weigh them;
a reader of 135 million parameters, which takes a hundredth of a second a request, adds more than a second answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Annotated, Any

from pydantic import Field

from supertiny.prototype.bench import Bench, StepCost, Trace
from supertiny.prototype.steps._held_out import KnownFunctions, known_functions, own_rows
from supertiny.prototype.steps._reader import reader_of
from supertiny.prototype.steps._stacking import Calls, Learned
from supertiny.prototype.steps._within import calls_within, steps_within


@dataclass(frozen=True)
class Stack:
    """Runs its steps, on labelled rows too, which they have not seen; without steps, the small models answer alone.

    The answer's function is weighed against the labelled rows' classifier; a tagger of the request's words, to which
    each step's answer is a hint, sets the arguments that labelled rows copy from the text. Several calls, functions
    without labelled rows and what the verifier would then fail stay as they are.
    """

    steps: tuple[Any, ...] = field(default=("retrieve", "fill"), metadata={"family": "steps"})
    """Steps that answer, in order; each step that asks a model gives a hint."""
    reader: str = ""
    """Small model whose hidden states the linear models see beside the words: one of the catalogue, or a Hugging Face
    folder. It makes much of few rows."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Labelled rows, drawn by seed, that the steps answer once to learn from; all where it is not given."""

    @property
    def calls_per_request(self) -> float:
        return calls_within(self.steps)

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        if not traces:
            return []
        answered, hints = self._answered(traces, bench)
        if not bench.spends:  # an estimate learns nothing: it wants to know what the steps take
            return answered
        known = known_functions(bench, self.reader)
        if known is None:
            return answered
        key = f"{self} {bench.engine.name} {bench.form} {bench.task.description}"
        learned: Learned = bench.shelf.once(key, lambda: self._learned(known, bench))
        shares = known([trace.request for trace in traces])
        return [learned.mended(*row, bench) for row in zip(answered, hints, shares, strict=True)]

    def _answered(self, traces: Sequence[Trace], bench: Bench) -> tuple[list[Trace], list[list[Calls]]]:
        """The traces after all steps, and of each the calls after every step that asks."""
        done, hints = list(traces), [list[Calls]() for _ in traces]
        for step in steps_within(self.steps, bench.task, "stack.steps"):
            done = step.run(done, bench)
            for said, trace in zip(hints, done, strict=True):
                said += [trace.calls] if step.calls_per_request else []
        return done, hints

    def _learned(self, known: KnownFunctions, bench: Bench) -> Learned:
        rows = own_rows(bench)
        if self.rows is not None and self.rows < len(rows):
            rows = Random(bench.seed).sample(rows, self.rows)
        done, hints = self._answered([Trace(row.request) for row in rows], bench)
        bench.shelf.pay("stack: answering labelled rows", sum((trace.spent for trace in done), StepCost()))
        return Learned(rows, done, hints, known, bench, reader_of(self.reader, bench))
