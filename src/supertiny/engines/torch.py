"""PyTorch by transformers: opens a stock Hugging Face folder; scores with any number of best tokens.

Use when: a student is trained, compared or scored; needs no conversion, and is slower than the other engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from supertiny.core.errors import UserError
from supertiny.core.protocols import Engine
from supertiny.engines._model_file import file_and_name
from supertiny.engines._torch_engine import TorchEngine


@dataclass(frozen=True)
class Torch:
    """Settings of the engine."""

    model: str = ""
    """Path of a Hugging Face folder; an opened folder overrides it."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """`auto` is float32 where the weights were saved in it; else bfloat16 where the processor multiplies it."""
    max_batch: Annotated[int, Field(ge=1)] = 32
    """Prompts that are worked on at once."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Processor threads of the whole process; 0 leaves PyTorch's own choice."""
    dollars_per_hour: Annotated[float, Field(ge=0)] = 0.0
    """Price of the machine."""

    serves = ("token_scores", "best_tokens", "logprobs")

    def open(self, model: Path | None = None) -> Engine:
        """Loads the model. Raises UserError where it is not a Hugging Face folder."""
        if model is None and not self.model:
            raise UserError("the torch engine has no model", "set `model` to the path of a Hugging Face folder")
        folder = model or Path(self.model)
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is not a Hugging Face folder: it has no config.json", "GGUF opens in openvino")
        _, identity = file_and_name("", folder)
        if self.threads:
            torch.set_num_threads(self.threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            precision = self.precision if self.precision != "auto" else _own_precision(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, precision), local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} does not open: {str(error).strip().splitlines()[0]}") from error
        return TorchEngine(self, folder, f"torch/{identity}/{precision}", loaded.to(device).eval(), tokenizer)


def _own_precision(folder: Path) -> str:
    """Weights that were saved in float32 may differ by less than bfloat16 can tell (an exact grid, for instance)."""
    saved = AutoConfig.from_pretrained(folder, local_files_only=True).dtype
    return "bfloat16" if saved != torch.float32 and _multiplies_bfloat16() else "float32"


def _multiplies_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))
