"""llama.cpp: GGUF's own runtime, batched, with shared prefixes computed once; an extra, since it compiles.

Use when: an artifact must run as Ollama, llama-server or a small ARM board will run it, or a GGUF type needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from supertiny.core.protocols import Engine
from supertiny.engines._gguf_file import read_header
from supertiny.engines._llama_engine import LlamaEngine
from supertiny.engines._model_file import file_and_name


@dataclass(frozen=True)
class LlamaCpp:
    """Settings of the engine."""

    model: str = ""
    """Name in the catalogue of models, or path of a GGUF file; an opened model file overrides it."""
    max_batch: Annotated[int, Field(ge=1)] = 16
    """Prompts that are worked on at once."""
    context_tokens: Annotated[int, Field(ge=1)] = 16384
    """Tokens of all running prompts and shared prefixes together."""
    batch_tokens: Annotated[int, Field(ge=1)] = 512
    """Tokens of one forward pass, over all prompts."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Processor threads; 0 takes all cores that the process may use."""
    dollars_per_hour: Annotated[float, Field(ge=0)] = 0.0
    """Price of the machine."""

    serves = ("token_scores", "best_tokens", "logprobs")

    def open(self, model: Path | None = None) -> Engine:
        """Loads the model. Raises UserError for a broken file, and where llama-cpp-python is not installed."""
        path, identity = file_and_name(self.model, model)
        header = read_header(path)
        return LlamaEngine(self, path, f"llama_cpp/{identity}", header.metadata)
