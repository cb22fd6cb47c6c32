"""What is noted of rows: why a curator left one out, and who changed one.

Reasons are said to whoever listens, so that the socket stays rows in, rows out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from supertiny.core.records import Example

_listener: ContextVar[dict[str, str] | None] = ContextVar("listener", default=None)


def left_out(example: Example, reason: str) -> None:
    """Notes the reason under the row's id; without a listener, nothing happens."""
    heard = _listener.get()
    if heard is not None:
        heard[example.request.id] = reason


@contextmanager
def reasons_heard() -> Iterator[dict[str, str]]:
    """Gives a mapping from a row's id to the reason why it was left out, filled while the block runs."""
    heard: dict[str, str] = {}
    token = _listener.set(heard)
    try:
        yield heard
    finally:
        _listener.reset(token)


def is_labelled(example: Example) -> bool:
    """Whether a row's answer is a person's: gold that the task came with."""
    return example.provenance.get("source") == "labelled"


def changed_by(curator: str, row: Example, **more: Any) -> dict[str, Any]:
    """The provenance of a row that a curator changed in place: where it first came from stays, and who changed it."""
    changes = [*row.provenance.get("changed_by", ()), curator]
    return {"origin": row.request.id, **row.provenance, **more, "changed_by": changes}
