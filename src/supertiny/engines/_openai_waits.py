"""How long a server asks to wait, read from its headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PIECE = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def asked_wait(headers: Mapping[str, str], now: datetime | None = None) -> float:
    """Seconds that Retry-After asks for, as seconds or as a date; 0 where it is absent or unreadable."""
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    asked = headers.get("retry-after", "").strip()
    seconds = _number(asked)
    if seconds is not None:
        return seconds
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())


def quota_pause(headers: Mapping[str, str]) -> float:
    """Seconds until a used-up quota of requests or tokens is whole again; 0 where something is left."""
    waits = [0.0]
    for kind in ("requests", "tokens"):
        left = _number(headers.get(f"x-ratelimit-remaining-{kind}", ""))
        if left is not None and left <= 0:
            waits.append(_duration_seconds(headers.get(f"x-ratelimit-reset-{kind}", "")))
    return max(waits)


def _duration_seconds(text: str) -> float:
    """Seconds of `20ms`, `1.5s`, `6m0s` or a bare number; 0 where it is none of these."""
    number = _number(text)
    if number is not None:
        return number
    pieces = _PIECE.findall(text)
    return sum(float(amount) * _UNIT_SECONDS[unit] for amount, unit in pieces)


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
