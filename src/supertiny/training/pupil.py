"""A student in memory while it is taught."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from supertiny.core.errors import UserError

Precision = Literal["auto", "bfloat16", "float32"]
# A bar per opened file would tear the run's own progress.
disable_progress_bar()  # type: ignore[no-untyped-call]


def resolved(precision: Precision) -> torch.dtype:
    """The dtype of `auto`: bfloat16 where the processor multiplies it in hardware, else float32."""
    if precision == "auto":
        fast = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@dataclass
class Pupil:
    """A causal language model with its tokenizer, ready to be taught or asked for hidden states."""

    model: Any
    tokenizer: Any
    device: torch.device

    @classmethod
    def open(cls, folder: Path, precision: Precision = "auto") -> Pupil:
        """Opens a stock Hugging Face folder. Raises UserError where it is none."""
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is no Hugging Face model folder: config.json is missing")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # On a CPU the fused attention's backward pass takes a fifth of a step on short rows; plain products take 2 %.
        attention = "eager" if device.type == "cpu" else "sdpa"
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=resolved(precision), trust_remote_code=False, attn_implementation=attention
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return cls(model.to(device), tokenizer, device)

    def hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Last hidden states (batch, length, width) of token ids and attention mask (batch, length)."""
        states: torch.Tensor = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        return states

    def logits_at(self, ids: torch.Tensor, mask: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Logits (positions, vocabulary) in float32 at the places where `wanted` (batch, length) is true, no others."""
        states = self.hidden(ids, mask)[wanted]
        logits: torch.Tensor = self.model.get_output_embeddings()(states)
        return logits.float()

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def save(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Writes a stock Hugging Face folder (safetensors of that dtype) that `AutoModelForCausalLM` opens."""
        folder.mkdir(parents=True, exist_ok=True)
        model = self.model
        if next(model.parameters()).dtype != dtype:
            # Cast a copy: casting there and back would round the weights and the rotary frequencies being trained with.
            model = copy.deepcopy(model).to(dtype)
        try:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot write {folder}: {error}", "free some disk space or check rights") from error
