"""What a recipe may say under `compress`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from supertiny.compress.gate import Gate
from supertiny.compress.steps import steps_of
from supertiny.core.errors import UserError

Count = Annotated[int, Field(ge=1)]


def _known(blocks: tuple[Any, ...]) -> tuple[Any, ...]:
    """Raises ValueError from all mistakes of the steps: what a pruner is told beside its own settings is told here."""
    try:
        steps_of(blocks)
    except UserError as error:
        raise ValueError from error
    return blocks


Steps = Annotated[tuple[Any, ...], AfterValidator(_known)]


@dataclass(frozen=True)
class Settings:
    """The student's way to an artifact."""

    steps: Steps = field(
        default_factory=lambda: ({"method": "drop_blocks", "share": 0.1}, {"method": "gguf", "type": "q4_0"})
    )
    """Reshapers and pruners, then quantizers, in order, and one exporter at the end.

    A pruner says its `sparsity`, the share of zeros; pruners and quantizers may `skip` matrices by name.
    """
    recovery: Any = field(
        default_factory=lambda: {"method": "distil", "learning_rate": 2e-4, "passes": 2},
        metadata={"family": "learners", "lacks": ("token_scores", "practice")},
    )
    """Learner that runs after each step that shrinks the student; its teacher is the student before the first step.

    `null` is none: then every step leaves what it made.
    """
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
    gate: Gate = field(default_factory=Gate, metadata={"added": True})
    """What the artifact must hold against the student of the stage before; where it does not, another takes its place.
    """
