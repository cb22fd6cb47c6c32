"""Two random matrices, shared and frozen, of which each layer learns two vectors of scales.

Paper: Kopiczko et al., VeRA, 2023, arXiv:2310.11454.
Use when: adapters must be smaller than LoRA's, since many are kept for one student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from supertiny.training.adapters._peft import merged_by_peft, targets_of, wrapped_by_peft


@dataclass(frozen=True)
class Vera:
    """W + diag(b) B diag(d) A, with b zero at the start; PEFT's own class."""

    rank: Annotated[int, Field(ge=1)] = 64
    """Rank of the shared matrices; it costs few weights, so it is higher than LoRA's."""
    start: Annotated[float, Field(gt=0)] = 0.1
    """First value of each d."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the layer's input that is dropped on its way into the adapter."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that are adapted; none is all but the head."""

    def wrap(self, model: Any, seed: int) -> Any:
        from peft import VeraConfig

        config = VeraConfig(
            r=self.rank,
            d_initial=self.start,
            vera_dropout=self.dropout,
            projection_prng_key=seed,
            target_modules=targets_of(model, self.targets),
            task_type="CAUSAL_LM",
        )
        return wrapped_by_peft(model, config, seed)

    def merge(self, model: Any) -> Any:
        return merged_by_peft(model)
