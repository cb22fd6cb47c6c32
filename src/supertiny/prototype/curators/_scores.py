"""Log-probabilities of answers under a small model: one batched engine call for all rows, each pair scored once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from supertiny.core.files import hash_of
from supertiny.core.methods import build
from supertiny.core.protocols import Engine, Format
from supertiny.core.records import Answer, Example, Prompt
from supertiny.core.task import Task
from supertiny.prototype.token_scores import Scored, summed_logprobs

STUDENT: Any = {"method": "openvino", "model": "smollm2-135m-instruct-q4_1"}
"""Block of the engine that scores where a recipe names none: the student's base model."""
Pair = tuple[Prompt, str]
_LONGEST_CHARACTERS = 8000  # of a prompt; of a longer one the end is read, which a small model's context holds


def _opened(block: Any) -> Engine:
    engine: Engine = build("engines", block, "prototype.curators").open()
    return engine


class Scores:
    """Engines by their recipe blocks, opened once; what they scored once is not scored again by another curator."""

    def __init__(
        self,
        open_engine: Callable[[Any], Engine] = _opened,
        wrap: Callable[[Engine], Engine] = lambda engine: engine,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`wrap` puts an engine behind a run's ledger, which then keeps the scores too; `note` is told of new work."""
        self._note = note
        self._open = open_engine
        self._wrap = wrap
        self._engines: dict[str, Engine] = {}
        self._known: dict[tuple[str, Prompt, str], Scored] = {}

    def engine(self, block: Any) -> Engine:
        """The engine of a block."""
        name = hash_of(block)
        if name not in self._engines:
            self._engines[name] = self._wrap(self._open(block))
        return self._engines[name]

    def of(self, block: Any, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Scored]:
        """One score per pair, in order; all that are new go to the engine as one batch.

        Raises UserError where the engine cannot score, BudgetReached before a call that the budget does not cover.
        """
        engine = self.engine(block) if prompts else None
        name = engine.name if engine else ""
        keys = [(name, _within_context(p), text) for p, text in zip(prompts, continuations, strict=True)]
        fresh = [key for key in dict.fromkeys(keys) if key not in self._known]
        if engine and fresh:
            self._note(f"  scoring {len(fresh)} texts with {name}")
            scored = summed_logprobs(engine, [(prompt, text) for _, prompt, text in fresh])
            self._known.update(zip(fresh, scored, strict=True))
        return [self._known[key] for key in keys]

    def close(self) -> None:
        """Frees all engines."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()


def loss_of(score: Scored) -> float:
    """Mean negative log-probability of a token, in nats; 0 for no token. Its exponential is the perplexity."""
    return -score.logprob / score.tokens if score.tokens else 0.0


def losses_of(pairs: Sequence[Pair], scores: Scores, engine: Any) -> list[float]:
    """Mean loss per token of each text after its prompt, in nats."""
    return [loss_of(score) for score in scores.of(engine, [prompt for prompt, _ in pairs], [text for _, text in pairs])]


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


def _within_context(prompt: Prompt) -> Prompt:
    return Prompt((), prompt.text[-_LONGEST_CHARACTERS:])
