"""What a recipe may say under `optimise`: the pipelines that are tried, and how far the search may go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from supertiny.core.ledger import Budget

Share = Annotated[float, Field(ge=0, lt=1)]
Limit = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Settings:
    """The space is every pipeline, with every choice of examples, engine, format and wording.

    What is not given is derived from the recipe: its own pipeline, and this with and without each optional step.
    """

    steps: tuple[tuple[Any, ...], ...] | None = None
    """Pipelines to try, each a list of steps; the recipe's with and without each optional step where not given."""
    optional: tuple[Any, ...] | None = None
    """Steps to try every pipeline with and without; check, vote and the recipe's own where steps is not given."""
    examples: tuple[Annotated[int, Field(ge=0)] | dict[str, Any], ...] | None = None
    """Numbers of examples that retrieve shows, or whole retrieve blocks; 0, 3, 6, 10 where steps is not given."""
    engines: tuple[Any, ...] = field(default=(), metadata={"family": "engines"})
    """Models to try; the recipe's where none is given."""
    formats: tuple[Any, ...] = field(default=(), metadata={"family": "formats"})
    """Formats to try; the recipe's where none is given."""
    wordings: tuple[str, ...] = ()
    """Texts to try in place of the task's description, beside the recipe's own."""
    selector: Any = field(default=None, metadata={"family": "selectors"})
    """What ranks the wordings by label probabilities, without labels, before anything is tried; nothing where unset."""
    wordings_kept: Annotated[int, Field(ge=1)] = 2
    """Wordings that a selector lets through."""
    selector_rows: Annotated[int, Field(ge=2)] = 12
    """Rows of the unlabelled pool that a selector sees; each is read once per wording and frequent function."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Rows of valid that are used in all; all of them where it is not given."""
    fresh_share: Share = 0.25
    """Share of these rows that choose nothing: the chosen pipeline is measured on them again."""
    keep: Annotated[int, Field(ge=2)] = 3
    """One of so many pipelines goes on to the next round, which has so many times the rows."""
    least_rows: Annotated[int, Field(ge=2)] = 12
    """Rows of the first round at least."""
    tolerance: Share = 0.0
    """The cheapest pipeline that is at most this share of exact answers below the best is chosen."""
    seconds_at_most: Limit | None = None
    """Seconds a request that the chosen pipeline may take."""
    dollars_at_most: Limit | None = None
    """Dollars a request that the chosen pipeline may take."""
    budget: Budget = field(default_factory=Budget)
    """What the search may spend in all, within prototype.budget; never crossed."""
