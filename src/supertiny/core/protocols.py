"""All sockets on one page: what a method of each family must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from supertiny.core.records import (
    Answer,
    Completion,
    Example,
    Grammar,
    Price,
    Prompt,
    Request,
    Sampling,
    TokenScores,
    Tool,
)

if TYPE_CHECKING:
    import torch

    from supertiny.core.task import Task

Done = Callable[[int, Completion], None]


class Answerer(Protocol):
    """Whatever answers requests: the teacher pipeline, the student, the artifact, a floor."""

    name: str

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in order."""


class Engine(Protocol):
    """Whatever runs a language model. Opened by `open()` of its method; `close()` frees the model."""

    name: str
    """Identity of model and settings that change what is written; part of the ledger's key."""
    price: Price

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; `done(index, completion)` is called as each finishes."""

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        """Log-probabilities of each continuation after its prompt, with the `top` best tokens at each place."""

    def close(self) -> None: ...


class EngineMethod(Protocol):
    """Frozen settings that open an engine; `serves` says what may be asked: token_scores, best_tokens, logprobs."""

    def open(self, model: Path | None = None) -> Engine:
        """Loads the model; `model` is a GGUF file or a Hugging Face folder that overrides the settings' own."""


class Format(Protocol):
    """Request to prompt and text to calls; one object for training and serving, so they cannot drift apart."""

    stop: str
    """Text of the token that ends an answer."""
    rules: str
    """What a language model is told of how to write calls, and no call."""

    def encode(self, request: Request, tools: Sequence[Tool]) -> Prompt: ...

    def write(self, answer: Answer) -> str:
        """The text that a model is taught to write for this answer, without the stop token."""

    def decode(self, text: str) -> Answer:
        """Inverse of `write`. Raises ValueError where the text is not in the format."""

    def grammar(self, tools: Sequence[Tool], words: bool = True) -> Grammar | None:
        """All texts that `write` can give for valid calls of these tools, or None where none can be stated.

        Without `words`, calls alone, or the text that stands for none.
        """


class Step(Protocol):
    """One step of the teacher pipeline, batch in, batch out; Trace and Bench stand in prototype/bench.py.

    The attribute `needs` names what a step cannot do without: token_scores, logprobs, execute.
    """

    calls_per_request: float
    """Model calls that a request is expected to take."""

    def run(self, traces: Sequence[Any], bench: Any) -> list[Any]:
        """One trace per trace, in order, each with the cost of what was asked for it."""


class Selector(Protocol):
    """Ranks prompts without labels, by the (prompts, rows, labels) probabilities that a model gave under each."""

    def rank(self, prompts: Sequence[Any], probabilities: Any) -> list[int]:
        """Places of the prompts, best first. Raises ValueError where the array does not belong to the prompts."""


class Curator(Protocol):
    """Examples in, fewer or better examples out; what it makes or changes carries its origin's id.

    Where the class attribute `needs` has "live_teacher", "token_scores" or "person", `curate` takes one more keyword,
    `bench`, a prototype.curators._bench.CuratorBench. One that asks the teacher says by `model_calls(rows,
    calls_per_request)` how often it is expected to. One with the class attribute `mends` gets unreadable answers too.
    """

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]: ...


class Learner(Protocol):
    """Owns a training loop: yields a training.loop.Step per step; the stage logs, saves and stops it.

    `pupil` is a training.pupil.Pupil, `lessons` are training.lessons.Lesson. The class attribute `needs` names further
    keywords of `fit`: "live_teacher" (`teacher`, a Pupil), "token_scores" (`scores`, a training.scores.Scores of the
    lessons in order), "practice" (`practice`, a training.practice.Practice); `takes` those that it can do without.
    """

    passes: int
    """Times that each lesson is seen."""
    rows: int
    """Rows of a batch."""

    def fit(
        self, pupil: Any, lessons: Sequence[Any], seed: int, checkpoint: Path | None = None, every: int = 0
    ) -> Iterator[Any]:
        """Goes on from `checkpoint` where that file exists, and saves there `every` so many steps; 0 is never."""


class Divergence(Protocol):
    """How far a student is from its teacher at each position.

    Both sides are (positions, support) natural-log probabilities on one support; gives (positions,) numbers >= 0.
    """

    def __call__(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor: ...


class Reward(Protocol):
    """How good each of a pupil's own answers to a request is, in [-1, 1], gold the most; training.practice.Sample."""

    def __call__(self, example: Example, samples: Sequence[Any]) -> list[float]: ...


class Adapter(Protocol):
    """Few weights to learn beside frozen ones. One whose `needs` has "own_runtime" cannot be merged."""

    def wrap(self, model: Any, seed: int) -> Any: ...

    def merge(self, model: Any) -> Any:
        """A stock model that computes the same. Raises UserError where the method has none."""


class Reshaper(Protocol):
    """A Hugging Face model and training.lessons.Batch to look at in, a smaller model out, still stock.

    One that `needs` "tokenizer" gets it by name and gives (model, tokenizer); `reports = True` gets advance(done, of).
    """

    def reshape(self, model: Any, calibration: Sequence[Any]) -> Any: ...


class Pruner(Protocol):
    """Sees one matrix (out, in) and what flows into it, a compress.inputs.Inputs; knows no model."""

    def prune(self, weight: torch.Tensor, inputs: Any, sparsity: float) -> torch.Tensor:
        """A copy of which the share `sparsity` is zero."""


class Quantizer(Protocol):
    """Sees one matrix (out, in) and what flows into it, a compress.inputs.Inputs or None; knows no model.

    One whose grids have no zero says `zeroless = True`, and may not follow a pruner.
    """

    def quantize(self, weight: torch.Tensor, inputs: Any) -> Any:
        """A compress.packed.Packed: `restored()` gives the matrix, `bytes` what it takes."""


class Exporter(Protocol):
    """A student folder in, files that a serving engine opens out."""

    def export(self, student: Path, folder: Path) -> Mapping[str, Any]: ...


class Router(Protocol):
    """How doubtful a draft answer is, 0..1; the threshold lives in the recipe."""

    def doubt(self, request: Request, draft: Answer) -> float: ...
