"""Which steps cannot stand behind which others, so that a recipe is refused before it is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supertiny.core.errors import UserError

# They write calls anew, and nobody tells them of references to results.
_WRITE_ANEW = {"cascade", "fill", "mark", "plain", "plan", "route", "stack", "vote"}


def misplaced(steps: Sequence[Any], place: str) -> list[UserError]:
    """Steps of one list that cannot work where they stand; `place` is the list's."""
    found = []
    names = [type(step).__module__.rpartition(".")[2] for step in steps]
    planned = False
    for number, name in enumerate(names):
        asking = [names[before] for before in range(number) if steps[before].calls_per_request]
        if name == "stack" and asking:
            problem = f"stack stands behind {asking[-1]}, which its labelled rows do not go through"
            found.append(UserError(f"{place}.{number}: {problem}", "put that step into the steps of stack"))
        if planned and name in _WRITE_ANEW:
            problem = f"{name} writes the calls of plan anew, without their references"
            found.append(UserError(f"{place}.{number}: {problem}", "put it behind execute, or leave one of them out"))
        planned = name == "plan" or (planned and name != "execute")
    return found
