"""Settings of the serve stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

AtLeastOne = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Limits:
    """What one server takes on; what is beyond is refused with an error that names it."""

    body_bytes: AtLeastOne = 262_144
    """Bytes of a request's body; a larger one is refused before it is read."""
    messages: AtLeastOne = 64
    """Messages in a request."""
    characters: AtLeastOne = 4_000
    """Characters of all messages of a request together."""
    batch: AtLeastOne = 16
    """Requests that the model answers at once."""
    waiting: AtLeastOne = 256
    """Requests that wait for the model; more are sent away with status 429."""
    gather_seconds: Annotated[float, Field(ge=0, le=1)] = 0.002
    """How long an idle model waits for company of the first request; a busy one takes all that waits at once."""
    request_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time to receive a request, and then to answer it."""


@dataclass(frozen=True)
class Settings:
    """How the artifact is served."""

    engine: Any = field(default="openvino", metadata={"family": "engines"})
    """Engine that runs the artifact: a method of `engines`."""
    router: Any = field(default="never", metadata={"family": "routers"})
    """How doubtful a draft is: a method of `routers`."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Doubt above which the fallback is asked, where the server is given one: 1 never asks it, 0 always."""
    max_tokens: AtLeastOne = 96
    """Tokens that an answer may have."""
    limits: Limits = Limits()
    """What one server takes on."""
