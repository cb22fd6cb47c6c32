"""A student in memory while it is taught."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from supertiny.core.errors import UserError
from supertiny.engines._torch_reading import has_virtual_tokens
from supertiny.training.lessons import Batch
from supertiny.training.sparing import head_loss, hidden_states

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
    """Stock, or wrapped by the adapter."""
    tokenizer: Any
    device: torch.device
    note: Callable[[str], None] = lambda text: None
    """Where the pupil's training tells what a person should know."""
    adapter: Any = None
    """The method of the family adapters that wrapped the model; None where the model is stock."""

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
        if has_virtual_tokens(self.model):
            # Only PEFT's own forward pass puts them before the prompt. Of the head's products, one is made.
            written = self.model(
                input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True, logits_to_keep=1
            )
            virtual: torch.Tensor = written.hidden_states[-1][:, -ids.shape[1] :]
            return virtual
        # PEFT's model is a shell: its tuner changed layers of the stock model within, which runs them.
        within = self.model.get_base_model() if hasattr(self.model, "active_peft_config") else self.model
        return hidden_states(within, ids, mask)

    def logits_at(self, ids: torch.Tensor, mask: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Logits (positions, vocabulary) in float32 at the places where `wanted` (batch, length) is true, no others."""
        states = self.hidden(ids, mask)[wanted]
        logits: torch.Tensor = self.model.get_output_embeddings()(states)
        return logits.float()

    def answer_loss(self, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy on the batch's answer tokens; takes less memory than that of `logits_at`."""
        states = self.hidden(batch.ids, batch.mask)[batch.wanted]
        return head_loss(states, self.model.get_output_embeddings(), batch.targets)

    @property
    def pad_id(self) -> int:
        """The token that fills rows up."""
        known = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if known is None else known)

    def id_of(self, token: str) -> int:
        """The id of a token. Raises UserError where the tokenizer does not have it."""
        known = self.tokenizer.get_vocab().get(token)
        if known is None:
            raise UserError(f"the student's tokenizer has no token {token!r}", "give the format a `stop` that it has")
        return int(known)

    @property
    def parameters(self) -> int:
        """Number of weights, those that an adapter holds as codes with them."""
        held: int = sum(getattr(module, "weights_held", 0) for module in self.model.modules())
        free: int = sum(parameter.numel() for parameter in self.model.parameters())
        return held + free

    @property
    def trainable(self) -> float:
        """Share of the parameters that may learn, 0..1."""
        learning: int = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return learning / max(1, self.parameters)

    @property
    def stock(self) -> Any:
        """The model as stock transformers open it: with an adapter, a copy with the adapter merged into its weights.

        Raises UserError where the adapter cannot be merged.
        """
        if not self._is_wrapped:
            return self.model
        merged = self._merged()
        dtype = self.model.get_input_embeddings().weight.dtype
        for parameter in merged.parameters():  # not the buffers: rotary frequencies are float32 in every model
            parameter.data = parameter.data.to(dtype)
        return merged

    @property
    def _is_wrapped(self) -> bool:
        return self.adapter is not None and getattr(self.adapter, "wraps", True)

    def _merged(self) -> Any:
        """A float32 copy with the adapter merged: added in bfloat16, small changes would be rounded away."""
        return self.adapter.merge(copy.deepcopy(self.model).float())

    def save(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Writes a stock Hugging Face folder (safetensors of that dtype) that `AutoModelForCausalLM` opens.

        Raises UserError where the pupil's adapter cannot be merged, or the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        model = self._merged().to(dtype) if self._is_wrapped else self.model
        if next(model.parameters()).dtype != dtype:
            # Cast a copy: casting there and back would round the weights and the rotary frequencies being trained with.
            model = copy.deepcopy(model).to(dtype)
        try:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot write {folder}: {error}", "free some disk space or check rights") from error
