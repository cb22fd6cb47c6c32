"""One set of weights in several blocks, and files that stay stock all the same."""

from __future__ import annotations

from typing import Any

import torch


def write_copies(model: Any) -> None:
    """Lets the model be saved although its blocks share weights: the file has a copy for each of them.

    A stock configuration has no word for blocks that share, and transformers refuses to write such tensors; a file that
    named them once would be opened with random weights in the other blocks.
    """
    model.register_state_dict_post_hook(_copied)


def _copied(module: Any, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
    seen = set[int]()
    for name in [name for name in state if ".layers." in name]:
        place = state[name].data_ptr()
        if place in seen:
            state[name] = state[name].clone()
        seen.add(place)
