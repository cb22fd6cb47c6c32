"""What a compressed model may take: `bytes<=60MB, p50<=25ms, drop<=1pt`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from supertiny.core.errors import UserError, UserErrors, nearest_word

_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_SECONDS = {"ms": 1e-3, "s": 1.0}
_SHARE = {"pt": 1e-2, "pts": 1e-2, "point": 1e-2, "points": 1e-2, "%": 1e-2}
_WEIGHTS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9}
UNITS: Mapping[str, Mapping[str, float]] = {
    "bytes": _BYTES,
    "p50": _SECONDS,
    "drop": _SHARE,
    "parameters": _WEIGHTS,
}
_TERM = re.compile(r"([^<>=≤≥\s]+)\s*(<=|>=|[<>=≤≥]{1,2})\s*(\S+?)\s*([^\d.\s]*)")
_EXAMPLE = "write it like 'bytes<=60MB, p50<=25ms, drop<=1pt'"


@dataclass(frozen=True)
class Budget:
    """Limits that a point keeps by being at or below them; None is no limit."""

    bytes: float | None = None
    """Size of the artifact's file."""
    p50: float | None = None
    """Seconds of a single request, the median."""
    drop: float | None = None
    """Share of valid's rows by which exact calls lie below the student's: 0.01 is a point."""
    parameters: float | None = None
    """Number of weights."""

    @classmethod
    def read(cls, text: str) -> Budget:
        """A budget from what a person types. Raises UserErrors with every term that is wrong, and what is near."""
        found: dict[str, float] = {}
        errors: list[UserError] = []
        for term in (part.strip() for part in text.split(",")):
            try:
                name, limit = _term(term)
                if name in found:
                    raise UserError(f"--budget: {name} is there twice", "give one limit")
                found[name] = limit
            except UserError as error:
                errors.append(error)
        if errors:
            raise errors[0] if len(errors) == 1 else UserErrors(errors)
        return cls(**found)

    def limits(self) -> dict[str, float]:
        return {name: limit for name in UNITS if (limit := getattr(self, name)) is not None}

    def excess(self, figures: Mapping[str, float | None]) -> dict[str, float]:
        """By name, by what factor of the limit a point lies above it; empty where all limits are kept.

        A limit of nothing and a figure that nobody knows are as far off as can be. Of `drop` the excess is counted in
        points, since a limit of 0 is usual.
        """
        over: dict[str, float] = {}
        for name, limit in self.limits().items():
            value = figures.get(name)
            if value is None or math.isnan(value):
                over[name] = math.inf
            elif value > limit + 1e-9:
                over[name] = 100 * (value - limit) if name == "drop" else value / limit - 1 if limit else math.inf
        return over

    def told(self) -> str:
        """As it is typed, in the units that people read."""
        return ", ".join(f"{name}<={written(name, limit)}" for name, limit in self.limits().items())


def written(name: str, value: float) -> str:
    """A value of a limit with its unit: `60MB`, `25ms`, `1pt`, `90M`."""
    if name == "drop":
        return f"{100 * value:.3g}pt"
    if name == "p50":
        return f"{value:.3g}s" if value >= 0.9995 else f"{1000 * value:.3g}ms"
    units = ("GB", "MB", "kB") if name == "bytes" else ("B", "M", "k")
    for unit, scale in zip(units, (1e9, 1e6, 1e3), strict=True):
        if value >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.0f}{'B' if name == 'bytes' else ''}"


def rounded_up(value: float) -> float:
    """The value with three digits, never less than it is: a limit that is told so is kept by what it was told of."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / step - 1e-9) * step


def _term(term: str) -> tuple[str, float]:
    match = _TERM.fullmatch(term)
    if not match:
        raise UserError(f"--budget: {term!r} is no limit", _EXAMPLE)
    name, sign, number, unit = match.groups()
    if name not in UNITS:
        raise UserError(f"--budget: there is no limit {name!r}", nearest_word(name, UNITS))
    if sign not in ("<=", "≤", "<"):
        raise UserError(f"--budget: {term!r}: limits are upper ones, with <=", _EXAMPLE)
    units = UNITS[name]
    if unit not in units and unit.lower() in {known.lower() for known in units}:
        unit = next(known for known in units if known.lower() == unit.lower())
    if unit not in units:
        problem = f"{name} has no unit {unit!r}" if unit else f"{name} needs a unit"
        raise UserError(f"--budget: {problem}", nearest_word(unit, [known for known in units if known]))
    try:
        value = float(number)
    except ValueError:
        raise UserError(f"--budget: {name}: {number!r} is no number", _EXAMPLE) from None
    least_is_nothing, limit = name != "drop", value * units[unit]
    if not math.isfinite(limit) or value < 0 or (least_is_nothing and value == 0):
        raise UserError(f"--budget: {name} must be {'above' if least_is_nothing else 'at least'} 0; found {number}")
    return name, limit
