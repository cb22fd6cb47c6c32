"""A bottleneck with a nonlinearity that reads each frozen weight and learns what to add to it.

Paper: PEANuT, weight-aware neural tweakers, 2024, arXiv:2410.01870.
Use when: LoRA's change is too plain at a low rank, and what is learned must still merge into the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from supertiny.training.adapters._peft import merged_by_peft, targets_of, wrapped_by_peft


@dataclass(frozen=True)
class Peanut:
    """W + scale * B act(A W), with layers of the rank's width between, and B zero at the start; PEFT's own class."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Width of the bottleneck."""
    depth: Annotated[int, Field(ge=0)] = 0
    """Pairs of layers within the bottleneck."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the change."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that are adapted; none is all but the head."""

    def wrap(self, model: Any, seed: int) -> Any:
        from peft import PeanutConfig

        config = PeanutConfig(
            r=self.rank,
            depth=self.depth,
            scaling=self.scale,
            target_modules=targets_of(model, self.targets),
            task_type="CAUSAL_LM",
        )
        return wrapped_by_peft(model, config, seed)

    def merge(self, model: Any) -> Any:
        return merged_by_peft(model)
