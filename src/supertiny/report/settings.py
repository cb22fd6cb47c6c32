"""What a recipe may say under `report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from supertiny.core.errors import nearest_word

ANSWERERS = ("tfidf_floor", "labelled_only", "plain_prompt", "pipeline", "student", "artifact")


def _known(chosen: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if chosen == "all":
        return chosen
    if isinstance(chosen, str) or not chosen:
        raise ValueError(f"must be `all` or a list of {', '.join(ANSWERERS)}")
    unknown = [
        f"there is no answerer {name!r}, {nearest_word(name, ANSWERERS)}" for name in chosen if name not in ANSWERERS
    ]
    if unknown:
        raise ValueError("; ".join(unknown))
    return chosen


Chosen = Annotated[str | tuple[str, ...], AfterValidator(_known)]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Settings:
    """How the report measures."""

    answerers: Chosen = "all"
    """Which answerers are measured: `all`, or a list of names."""
    test_rows: Count | None = None
    """Rows of test that are answered, drawn by the seed; all where it is not given."""
    latency_requests: Count = 40
    """Test requests that are sent one at a time to measure latency."""
    latency_seconds: Amount = 90.0
    """Seconds after which no further single request is sent, once ten are measured: keeps slow answerers affordable."""
    warm_up_requests: Annotated[int, Field(ge=0)] = 2
    """Single requests before those that count."""
    batch_requests: Count = 200
    """Requests handed to an answerer at once when all of test is answered."""
    dollars_per_hour: Annotated[float, Field(ge=0)] = 0.10
    """Price of one hour of this machine, for all that has no price of its own."""
    page_rows: Count = 2000
    """Rows with a wrong answer that the page holds at most; rows.jsonl always holds all."""
