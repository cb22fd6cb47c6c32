"""What a recipe may say under `prototype`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from supertiny.core.ledger import Budget

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Settings:
    """The teacher pipeline and what is kept of its labels."""

    engine: Any = field(
        default_factory=lambda: {"method": "openvino", "model": "qwen2.5-coder-1.5b-instruct-q4_k_m"},
        metadata={"family": "engines"},
    )
    """What runs the teacher's language model."""
    format: Any = field(default="compact", metadata={"family": "formats"})
    """How the teacher writes calls inside the pipeline."""
    plain_format: Any = field(default="chat_json", metadata={"family": "formats"})
    """How calls are written in the one plain prompt that the pipeline is compared with."""
    steps: tuple[Any, ...] = field(default=("retrieve", "fill", "check"), metadata={"family": "steps"})
    """Steps of the pipeline, in order."""
    wording: str = field(default="", metadata={"added": True})
    """What the pipeline is told in place of the task's description; that where it is empty."""
    curators: tuple[Any, ...] = field(default=("verified", "deduplicate"), metadata={"family": "curators"})
    """What chooses among the labelled pool, in order."""
    budget: Budget = field(default_factory=Budget)
    """What model calls may cost in all; never crossed."""
    plain_rows: Count = 100
    """Rows of valid on which the plain prompt is measured."""
    pool_rows: Count | None = None
    """Rows of the pool that are labelled; all where it is not given."""
    valid_rows: Count | None = None
    """Rows of valid on which the pipeline is measured; all where it is not given."""
    chunk: Count = 128
    """Requests that go through all steps together, so that a step finds in cache what the step before it read."""
