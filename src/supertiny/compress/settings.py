"""What a recipe may say under `compress`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from supertiny.core.methods import cards

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Settings:
    """The student's way to an artifact."""

    steps: tuple[Any, ...] = field(
        default_factory=lambda: ({"method": "drop_blocks", "share": 0.1}, {"method": "gguf", "type": "q4_0"}),
        metadata={"family": "exporters|reshapers"},
    )
    """Reshapers, in order, and one exporter at the end."""
    recovery: Any = field(
        default_factory=lambda: {"method": "distil", "learning_rate": 2e-4, "passes": 2},
        metadata={"family": "learners"},
    )
    """Learner that runs after each step that shrinks the student; its teacher is the student before the first step."""
    quantization_aware: bool = True
    """Whether the recovery trains with weights rounded as the exporter's q4_0 will round them."""
    recovery_rows: Count | None = None
    """Rows of prototype/train.jsonl that the recovery learns from; all where it is not given."""
    calibration_rows: Count = 128
    """Rows of prototype/train.jsonl that show a reshaper what matters."""
    valid_rows: Count | None = None
    """Rows of valid on which every step is measured and parity is asked; all where it is not given."""
    parity: Annotated[float, Field(ge=0, le=1)] = 0.98
    """Share of them on which artifact and student must answer alike; a larger type is tried where it is missed."""
    engine: Any = field(default="openvino", metadata={"family": "engines"})
    """What runs the artifact; every step is measured on it."""
    max_tokens: Count = 96
    """Longest answer, in tokens."""
    longest_tokens: Count = 512
    """Longest lesson of the recovery, in tokens."""

    def __post_init__(self) -> None:
        names = [step if isinstance(step, str) else step.get("method") for step in self.steps]
        exporters, reshapers = cards("exporters"), cards("reshapers")
        if any(name not in exporters and name not in reshapers for name in names):
            return  # a wrong name is told by the reading of the recipe
        if [name in exporters for name in names] != [False] * (len(names) - 1) + [True]:
            raise ValueError("steps must end with one exporter, and have no other")
