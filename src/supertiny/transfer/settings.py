"""What a recipe may say under `transfer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

_LEARNERS = {"family": "learners", "lacks": ("live_teacher",)}  # a catalogue model has no teacher of its own vocabulary

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Settings:
    """The student and how it is taught."""

    student: str = "smollm2-135m-instruct-q4_1"
    """A model of the catalogue, or a Hugging Face folder."""
    format: Any = field(default="compact", metadata={"family": "formats"})
    """How the student reads requests and writes calls."""
    learners: tuple[Any, ...] = field(default=("imitate",), metadata=_LEARNERS)
    """Learners, in order, on the examples that the prototype stage kept."""
    labelled_only: tuple[Any, ...] = field(
        default_factory=lambda: ({"method": "imitate", "passes": 12},),
        metadata=_LEARNERS,
    )
    """Learners of the floor: the same student taught on the labelled rows alone."""
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
