"""Token by token through a PyTorch model, with keys and values kept; an adapter's virtual tokens are read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache


def has_virtual_tokens(model: Any) -> bool:
    """Whether an adapter puts vectors, or keys and values, of its own before all tokens."""
    config = getattr(model, "active_peft_config", None)
    return config is not None and bool(config.is_prompt_learning)


def begun(model: Any, rows: int) -> tuple[Any, DynamicCache, int]:
    """(model that reads tokens, cache of `rows` rows, virtual tokens that stand in it).

    PEFT's own forward pass would put virtual tokens before every token that is written, and drop the cache of those
    before it where they are keys and values (arXiv:2101.00190); its `generate` alone knows better.
    """
    if not has_virtual_tokens(model):
        return model, DynamicCache(), 0
    within, learned = model.get_base_model(), model.get_prompt(rows)
    if isinstance(learned, torch.Tensor):
        cache = DynamicCache()
        states = learned.to(within.get_input_embeddings().weight.dtype)
        within(inputs_embeds=states, past_key_values=cache, use_cache=True, logits_to_keep=1)
    else:
        cache = learned
    return within, cache, int(model.active_peft_config.num_virtual_tokens)


def padded(
    rows: Sequence[Sequence[int]], filler: int, virtual: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (rows, longest), padded on the left, so that all go on from the same place, and their mask.

    The mask begins with the virtual tokens that stand before them: it is (rows, virtual + longest).
    """
    longest = max(len(row) for row in rows)
    ids = [[filler] * (longest - len(row)) + list(row) for row in rows]
    mask = [[1] * virtual + [0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def forward(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache | None, keep: int) -> torch.Tensor:
    """Logits (rows, keep, vocabulary) of the last `keep` places of ids (rows, length).

    `mask` (rows, virtual tokens + all that was read + length) is 0 where a row is padded, on its left.
    """
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    logits: torch.Tensor = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=keep,
    ).logits
    return logits
