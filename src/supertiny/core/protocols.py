"""All sockets on one page: what a method of each family must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from supertiny.core.records import (
    Answer,
    Call,
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

Done = Callable[[int, Completion], None]


class Answerer(Protocol):
    """Whatever answers requests: the teacher pipeline, the student, the artifact, a floor."""

    name: str

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in order."""
        ...


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
        ...

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        """Log-probabilities of each continuation after its prompt, with the `top` best tokens at each place."""
        ...

    def close(self) -> None: ...


class EngineMethod(Protocol):
    """A file of `engines/`: frozen settings that open an engine."""

    def open(self, model: Path | None = None) -> Engine:
        """Loads the model; `model` is a GGUF file or a Hugging Face folder that overrides the settings' own."""
        ...


class Format(Protocol):
    """Request to prompt and text to calls; one object for training and serving, so they cannot drift apart."""

    stop: str
    """Text of the token that ends an answer."""

    def encode(self, request: Request, tools: Sequence[Tool]) -> Prompt: ...

    def write(self, answer: Answer) -> str:
        """The text that a model is taught to write for this answer, without the stop token."""
        ...

    def decode(self, text: str) -> Answer:
        """Inverse of `write`. Raises ValueError where the text is not in the format."""
        ...

    def grammar(self, tools: Sequence[Tool]) -> Grammar | None:
        """All texts that `write` can give for valid calls of these tools, or None where none can be stated."""
        ...


class Trace(Protocol):
    """State of a batch of requests on their way through the teacher pipeline; see prototype/trace.py."""


class Step(Protocol):
    """One step of the teacher pipeline, from traces to traces, batch in, batch out."""

    def run(self, traces: Sequence[Any], workshop: Any) -> list[Any]: ...


class Curator(Protocol):
    """Examples in, fewer or better examples out; what it makes carries its origin's id."""

    def curate(self, examples: Sequence[Example], task: Any, seed: int) -> list[Example]: ...


class Learner(Protocol):
    """Owns a training loop: yields a record per step; the stage logs, saves and stops it."""

    def fit(self, student: Any, lessons: Any) -> Iterator[Any]: ...


class Divergence(Protocol):
    """How far a student is from its teacher at each position.

    Both sides are (positions, support) natural-log probabilities on one support; gives (positions,) numbers >= 0.
    """

    def __call__(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor: ...


class Adapter(Protocol):
    """Which parameters are trained. `full` trains all."""

    def wrap(self, model: Any) -> Any: ...

    def merge(self, model: Any) -> Any: ...


class Reshaper(Protocol):
    """A student in, a smaller one out, still stock."""

    def reshape(self, model: Any, calibration: Sequence[Any]) -> Any: ...


class Exporter(Protocol):
    """A student folder in, files that a serving engine opens out."""

    def export(self, student: Path, folder: Path) -> Mapping[str, Any]: ...


class Router(Protocol):
    """How doubtful a draft answer is, 0..1; the threshold lives in the recipe."""

    def doubt(self, request: Request, draft: Answer) -> float: ...


class Verifier(Protocol):
    """Schema and the task's own `verify`; see core/task.py."""

    def __call__(self, request: Request, calls: Sequence[Call]) -> Any: ...
