"""Steps that stand within a step's settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supertiny.core.methods import build, cards, own_methods
from supertiny.core.task import STEPS, Task


def steps_within(blocks: Sequence[Any], task: Task, place: str) -> list[Any]:
    """The steps of these blocks, in order; the task's own are among them."""
    own = own_methods("steps", task.folder / STEPS)
    return [build("steps", block, place, own) for block in blocks]


def calls_within(blocks: Sequence[Any]) -> float:
    """Model calls that a request is expected to take in all of them; a step of the task's own is taken to ask once."""
    names = [block if isinstance(block, str) else block["method"] for block in blocks]
    ours = [build("steps", block) for block, name in zip(blocks, names, strict=True) if name in cards("steps")]
    return float(len(names) - len(ours) + sum(step.calls_per_request for step in ours))
