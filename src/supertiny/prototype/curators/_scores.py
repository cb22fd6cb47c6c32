"""What the curators that score texts by a small model share: what it reads, and how well it foresees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supertiny.core.protocols import Format
from supertiny.core.records import Answer, Example, Prompt
from supertiny.core.task import Task
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.token_scores import summed_logprobs

STUDENT: Any = {"method": "openvino", "model": "smollm2-135m-instruct-q4_1"}
"""Block of the engine that scores where a recipe names none: the student's base model."""
Pair = tuple[Prompt, str]
_LONGEST_CHARACTERS = 8000  # of a prompt; of a longer one the end is read, which a small model's context holds


def losses_of(pairs: Sequence[Pair], bench: CuratorBench, block: Any) -> list[float]:
    """Mean negative log-probability of a token of each text after its prompt, in nats; 0 for no token.

    Its exponential is the perplexity. All pairs go to the block's engine as one batch, but for those that the run's
    ledger holds. Raises UserError where the engine cannot score, BudgetReached before a call that crosses the budget.
    """
    if not pairs:
        return []
    engine = bench.scorer(block)
    bench.teacher.note(f"  scoring {len(pairs)} texts with {engine.name}")
    scored = summed_logprobs(engine, [(Prompt((), p.text[-_LONGEST_CHARACTERS:]), text) for p, text in pairs])
    return [-score.logprob / score.tokens if score.tokens else 0.0 for score in scored]


def answer_pairs(rows: Sequence[Example], task: Task, form: Format) -> list[Pair]:
    """Each row's request as the student reads it, and its answer."""
    return [(student_prompt(row, task, form), form.write(row.answer or Answer())) for row in rows]


def request_pairs(rows: Sequence[Example]) -> list[Pair]:
    """Each request's own words, after one that says what comes."""
    return [(Prompt(text="Request:"), _text(row)) for row in rows]


def student_prompt(row: Example, task: Task, form: Format, shown: Sequence[str] = ()) -> Prompt:
    """What the student reads of a row's request, behind solved lessons."""
    prompt = form.encode(row.request, row.request.tools or task.tools)
    return Prompt(text="".join(shown) + prompt.text)


def lesson_text(row: Example, answer: str, task: Task, form: Format) -> str:
    """A request and what is written for it, as a solved lesson that may stand before another request."""
    return student_prompt(row, task, form).text + answer + form.stop + "\n"


def _text(row: Example) -> str:
    return " " + " ".join(row.request.text.split())[:_LONGEST_CHARACTERS]
