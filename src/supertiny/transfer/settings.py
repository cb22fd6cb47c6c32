"""What a recipe may say under `transfer`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field


def _lacks(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What learners may need of a teacher and there is none to give."""
    teacher = values.get("teacher")
    if not teacher:
        return ("live_teacher", "token_scores")
    return ("token_scores",) if isinstance(teacher, str) else ("live_teacher",)


_STOCK = "a student is a stock checkpoint: take one that merges, such as lora"
_LEARNERS = {"family": "learners", "lacks": _lacks, "hint": "name a model or an engine as `teacher`"}

Count = Annotated[int, Field(ge=1)]


def _some(learners: tuple[Any, ...]) -> tuple[Any, ...]:
    if not learners:
        raise ValueError("no learner: the student would stay untaught")
    return learners


@dataclass(frozen=True)
class Settings:
    """The student and how it is taught."""

    student: str = "smollm2-135m-instruct-q4_1"
    """A model of the catalogue, or a Hugging Face folder."""
    format: Any = field(default="compact", metadata={"family": "formats"})
    """How the student reads requests and writes calls."""
    learners: Annotated[tuple[Any, ...], AfterValidator(_some)] = field(default=("imitate",), metadata=_LEARNERS)
    """Learners, in order, on the examples that the prototype stage kept."""
    labelled_only: tuple[Any, ...] = field(
        default_factory=lambda: ({"method": "imitate", "passes": 12},),
        metadata=_LEARNERS,
    )
    """Learners of the floor: the same student taught on the labelled rows alone."""
    adapter: Any = field(default="full", metadata={"family": "adapters", "lacks": ("own_runtime",), "hint": _STOCK})
    """Which weights learn: all, or few beside frozen ones, merged into the student at the end."""
    teacher: Any = ""
    """Of learners that look at token probabilities: a model or Hugging Face folder, seen live, or an engine's block,
    whose scores of all lessons are stored once."""
    teacher_examples: Annotated[int, Field(ge=0)] = 4
    """Nearest labelled rows that a teacher behind an engine is shown before each lesson."""
    top_k: Count = 64
    """Tokens at each place whose scores by such a teacher are stored."""
    max_tokens: Count = 96
    """Longest answer of a student that answers while it learns."""
    quantization_aware: Literal["none", "q4_0"] = "none"
    """Type of file whose rounding the student is taught with: it then loses nothing when it is exported so."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of weights and activations; the optimiser always keeps float32 masters."""
    evaluations: Count = 6
    """Times that a learner's student is measured on valid, evenly spread; the best one is kept."""
    patience: Count = 2
    """Measurements without a better one after which a learner is stopped."""
    valid_rows: Count | None = None
    """Rows of valid that are measured each time; all where it is not given."""
    checkpoint_steps: Count = 100
    """Steps after which a killed training goes on."""
    longest_tokens: Count = 512
    """Longest lesson, in tokens."""

    def __post_init__(self) -> None:
        name = self.adapter if isinstance(self.adapter, str) else dict(self.adapter or {}).get("method")
        if self.quantization_aware != "none" and name != "full":
            told = f"quantization_aware rounds the model's own weights, and adapter {name} trains others"
            raise ValueError(f"{told} (drop one of them)")
