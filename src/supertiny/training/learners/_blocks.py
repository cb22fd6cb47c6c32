"""Where a model keeps its transformer blocks, whatever its family and whatever is wrapped around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from supertiny.core.errors import UserError


def blocks_of(model: Any) -> list[torch.nn.Module]:
    """The blocks, from the bottom up. Raises UserError where the model keeps none in a list."""
    for module in model.modules():  # from the outside in: lists within blocks come later
        if isinstance(module, torch.nn.ModuleList) and any(True for _ in module.parameters()):
            return list(module)
    raise UserError("the student keeps its blocks in no list", "choose another learner")


@contextmanager
def skipping(blocks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """While it lasts, these blocks give back what flows into them."""

    def unchanged(module: Any, given: tuple[Any, ...], named: dict[str, Any], result: Any) -> Any:
        states = given[0] if given else named["hidden_states"]
        return (states, *result[1:]) if isinstance(result, tuple) else states

    hooks = [block.register_forward_hook(unchanged, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
