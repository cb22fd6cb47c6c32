"""Changes nothing: the student as it is.

Use when: a baseline without any reshaping is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Keep:
    """Has no settings."""

    def reshape(self, model: Any, calibration: Sequence[Any]) -> Any:
        """The model itself."""
        return model
