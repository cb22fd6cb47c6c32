"""What rewards compare with: the trusted answer of an example, and the functions that its request names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from supertiny.core.methods import build
from supertiny.core.protocols import Reward
from supertiny.core.records import Answer, Example, Tool
from supertiny.core.scoring import is_exact
from supertiny.training.practice import Sample


def trusted(example: Example) -> Answer:
    """The answer to learn towards. Raises ValueError where the example has none."""
    if example.answer is None or not example.answer.readable:
        raise ValueError(f"row {example.request.id} has no answer to reward by")
    return example.answer


def functions_of(example: Example) -> Mapping[str, Tool]:
    """The request's own functions by name; none where the task's hold, by which answers were typed already."""
    return {tool.name: tool for tool in example.request.tools}


def right(example: Example, samples: Sequence[Sample]) -> list[bool]:
    """Whether each sample is exactly the trusted answer: the same calls, in any order, each as often."""
    calls, tools = trusted(example).calls, functions_of(example)
    return [sample.answer is not None and is_exact(sample.answer, calls, tools) for sample in samples]


def reward_of(block: Any) -> Reward:
    """The reward that a setting names; one that is built already stays what it is."""
    built: Reward = build("rewards", block) if isinstance(block, str | Mapping) else block
    return built
