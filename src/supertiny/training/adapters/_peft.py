"""PEFT's own classes, seeded and taken off again without a trace. PEFT takes seconds to import, so it is late."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from supertiny.core.errors import UserError
from supertiny.training.adapters._beside import linear_layers


def targets_of(model: Any, targets: Sequence[str]) -> str | list[str]:
    """PEFT's word for the layers that are adapted: none named is every linear layer but the head.

    Raises UserError for names that are none; PEFT is content where one of them is known.
    """
    linear_layers(model, targets)
    return list(targets) or "all-linear"


def wrapped_by_peft(model: Any, config: Any, seed: int) -> Any:
    """A PeftModel around the model. Raises UserError where the settings do not fit it.

    The adapter takes the model's own precision: the optimiser keeps float32 masters of whatever is learned.
    """
    from peft import get_peft_model

    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)  # PEFT draws from the global generator, which stays as it was
        warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers; nobody here can mend them
        try:
            return get_peft_model(model, config, autocast_adapter_dtype=False)
        except ValueError as error:
            raise UserError(f"the adapter does not fit the student: {error}", "see its `targets`") from error


def low_rank(method: Any, model: Any, seed: int, **more: Any) -> Any:
    """A PeftModel of LoRA's family; `method` has rank, alpha, dropout and targets, `more` is what sets it apart."""
    from peft import LoraConfig

    targets = targets_of(model, method.targets)
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        **more,
    )
    return wrapped_by_peft(model, config, seed)


def merged_by_peft(model: Any) -> Any:
    """The model that was wrapped, with the learned change in its own weights and all of them free to learn."""
    stock = model.merge_and_unload()
    for trace in ("peft_config", "_hf_peft_config_loaded", "peft_type"):
        vars(stock).pop(trace, None)
    return stock.requires_grad_(True)


def without_stock_model(name: str, reason: str) -> NoReturn:
    """Raises the UserError of adapters that cannot be merged."""
    raise UserError(
        f"{name} cannot be merged into the student: {reason}, and an artifact must be a stock model",
        "take an adapter that merges, for instance lora",
    )
