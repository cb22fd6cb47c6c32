"""OpenVINO GenAI: opens GGUF files, batches continuously, computes shared prefixes once; the embedded default.

Use when: a model must run on a CPU without a compiler, a server or a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from supertiny.core.protocols import Engine
from supertiny.engines._gguf_file import checked
from supertiny.engines._model_file import file_and_name
from supertiny.engines._openvino_engine import OpenVinoEngine

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_TENSOR_TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0")


@dataclass(frozen=True)
class OpenVino:
    """Settings of the engine."""

    model: str = ""
    """Name in the catalogue of models, or path of a GGUF file; an opened model file overrides it."""
    cache_gigabytes: Annotated[int, Field(ge=1)] = 2
    """Memory for keys and values of running prompts and of prefixes that later prompts may share."""
    max_batch: Annotated[int, Field(ge=1)] = 32
    """Prompts that are worked on at once."""
    batch_tokens: Annotated[int, Field(ge=1)] = 512
    """Tokens of one forward pass, over all prompts."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Processor threads; 0 takes all cores that the process may use."""
    precision: Literal["fast", "float32"] = "fast"
    """`fast`: bf16 where the processor has it, with 8-bit activations; `float32` is for comparisons."""
    dollars_per_hour: Annotated[float, Field(ge=0)] = 0.0
    """Price of the machine."""

    serves = ("token_scores", "logprobs")

    def open(self, model: Path | None = None) -> Engine:
        """Loads the model. Raises UserError for a file that is broken or that OpenVINO cannot open."""
        path, identity = file_and_name(self.model, model)
        checked(path, "openvino", _ARCHITECTURES, _TENSOR_TYPES)
        return OpenVinoEngine(self, path, f"openvino/{identity}/{self.precision}")
