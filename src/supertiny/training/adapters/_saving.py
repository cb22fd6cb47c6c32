"""Adapters as files: PEFT's own layout where the adapter is PEFT's, one safetensors file where it is ours."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from supertiny.core.errors import UserError
from supertiny.core.files import read_json, write_json, written_whole
from supertiny.training.optimiser import counts_of

_PEFT_CONFIG = "adapter_config.json"
_PEFT_FILES = ("adapter_model.safetensors", _PEFT_CONFIG)  # the config last: without it there is no adapter
_OWN_CONFIG, _OWN_WEIGHTS = "adapter.json", "adapter.safetensors"


def save(model: Any, folder: Path, base_name: str) -> None:
    """Writes what the wrapped model learned; `base_name` says whose adapter it is.

    An adapter of PEFT's is opened by `peft.PeftModel.from_pretrained` without this program.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _is_peft(model):
        model.active_peft_config.base_model_name_or_path = base_name
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as beside:
            # PEFT would look the base up on a hub to learn whether its embedding was resized; ours never are.
            model.save_pretrained(beside, save_embedding_layers=False)
            for name in _PEFT_FILES:
                (Path(beside) / name).replace(folder / name)
        return
    tensors = {name: tensor.detach().contiguous() for name, tensor in adapter_state(model).items()}
    with written_whole(folder / _OWN_WEIGHTS) as beside_file:
        save_file(tensors, beside_file)
    write_json(folder / _OWN_CONFIG, {"base_model_name_or_path": base_name})


def load(model: Any, folder: Path, base_name: str) -> Any:
    """The model with the adapter of that folder, ready to learn on; PEFT opens virtual tokens to answer alone.

    `model` is stock where the adapter is PEFT's, and freshly wrapped by the same method where it is ours. Raises
    UserError where the adapter is another base's, or does not fit.
    """
    own = (folder / _OWN_CONFIG).is_file()
    config = read_json(folder / (_OWN_CONFIG if own else _PEFT_CONFIG))
    made_for = config.get("base_model_name_or_path")
    if made_for != base_name:
        raise UserError(f"{folder} is an adapter for {made_for}; the student is {base_name}", "take its own adapter")
    try:
        return _load_own(model, folder) if own else _load_peft(model, folder)
    except (RuntimeError, ValueError, SafetensorError, OSError) as error:
        raise UserError(f"{folder} is no adapter that fits {base_name}: {error}") from error


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """All that training changes: weights that learn, and what adapters count beside them."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad} | counts_of(model)


def _load_peft(model: Any, folder: Path) -> Any:
    from peft import PeftConfig, PeftModel

    learns = not PeftConfig.from_pretrained(str(folder)).is_prompt_learning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers; nobody here can mend them
        return PeftModel.from_pretrained(model, folder, is_trainable=learns, autocast_adapter_dtype=False)


def _load_own(model: Any, folder: Path) -> Any:
    saved, state = load_file(folder / _OWN_WEIGHTS), adapter_state(model)
    if saved.keys() != state.keys():
        odd = sorted(saved.keys() ^ state.keys())
        raise ValueError(f"{len(odd)} tensors differ, among them {odd[0]}")
    with torch.no_grad():
        for name, tensor in saved.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(state[name].shape)}")
            state[name].copy_(tensor)
    return model


def _is_peft(model: Any) -> bool:
    return hasattr(model, "active_peft_config")
