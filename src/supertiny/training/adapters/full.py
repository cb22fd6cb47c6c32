"""No adapter: every weight of the model learns.

Use when: the student is tiny and its training fits in memory; the measure of all other adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Full:
    """The model itself."""

    wraps = False  # the model stays stock, so nothing needs to be copied to save it

    def wrap(self, model: Any, seed: int) -> Any:
        return model.requires_grad_(True)

    def merge(self, model: Any) -> Any:
        return model
