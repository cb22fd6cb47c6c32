"""The promotion gate: whether a compressed model may take the student's place, and if not, what it broke."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from supertiny.core.scoring import paired_bootstrap

Share = Annotated[float, Field(ge=0, le=1)]
Numbers = Sequence[float] | np.ndarray[Any, Any]
_ROUNDING = 1e-9
_ENOUGH_ROWS = 100  # for an interval to prove anything
_CHANCE_ROWS = 5  # lost and not won back, which may be chance: McNemar's p of five to none is 0.06
_BINS = 10  # of confidence; fewer where each would hold less than ten rows
_ROUNDS = 1000


@dataclass(frozen=True)
class Sitting:
    """What one model did on the rows that the gate looks at; two of the same rows pair."""

    hits: tuple[float, ...]
    """1 where a row of valid is answered exactly, else 0."""
    confidences: tuple[float, ...] | None = None
    """Of the same rows, 0..1; None where the engine knows none."""
    meters: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By the name of a trust meter, 1 for each row of it on which the model held."""

    def to_json(self) -> dict[str, Any]:
        meters = {name: list(values) for name, values in self.meters.items()}
        return {"hits": list(self.hits), "confidences": self.confidences, "meters": meters}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Sitting:
        known = value["confidences"]
        meters = {name: tuple(values) for name, values in value["meters"].items()}
        return cls(tuple(value["hits"]), None if known is None else tuple(known), meters)


@dataclass(frozen=True)
class Gate:
    """How much worse than the student a compressed model may be; both are asked the same rows.

    Exact calls, a hundred rows or more: the lower end of the 95 % interval of the paired difference must not lie below
    -margin. That end is as strict as there are rows: where the two differ on 4 of 100 rows in either direction, it is
    2.8 points below the difference with 200 rows, and 1.2 with 1000. A margin of 0.03 would therefore refuse nearly all
    that is smaller with the few hundred rows that a task has; 0.05 is the smallest that lets a model pass which is a
    point or two worse. With fewer rows an interval proves nothing, and models that are equally good would be refused:
    the difference itself must not lie below -margin, nor below five rows (half of them at most), whichever is more.
    Trust is asked less sharply, being several meters of fewer rows: one is broken where it fell by more than its
    margin, by five rows at least, and the whole interval lies below zero.
    """

    margin: Share = 0.05
    """Share of valid's rows by which exact calls may fall, with the interval; 1 lets all exact calls pass."""
    trust_margin: Share = 0.05
    """Share of its rows by which each trust meter may fall; calibration error may grow by as much."""
    trust_rows: Annotated[int, Field(ge=0)] = 100
    """Rows of each trust meter; 0 measures no trust."""

    def judge(self, student: Sitting, candidate: Sitting, seed: int) -> dict[str, Any]:
        """{promoted, broke, margin, exact, trust}: what was measured, and in words what the candidate broke.

        Without a row of valid `exact` is None, and trust alone decides. Raises ValueError where rows do not pair.
        """
        enough, n = len(student.hits) >= _ENOUGH_ROWS, len(student.hits)
        margin = self.margin if enough or not n else max(self.margin, min(_CHANCE_ROWS / n, 0.5))
        exact: dict[str, Any] | None = None
        if n:
            exact = _compared(student.hits, candidate.hits, seed)
            exact["ok"] = exact["low" if enough else "mean"] >= -margin - _ROUNDING
            exact["p"] = mcnemar(student.hits, candidate.hits)
        trust = [
            {"name": name, **self._trusted(_compared(student.meters[name], candidate.meters[name], seed), _CHANCE_ROWS)}
            for name in student.meters
            if student.meters[name] and name in candidate.meters
        ]
        if student.confidences and candidate.confidences:
            pair = (student.confidences, student.hits), (candidate.confidences, candidate.hits)
            trust.append({"name": "calibration", **self._trusted(_calibration(*pair, seed))})
        broke = [] if exact is None or exact["ok"] else [f"exact calls {_told(exact)}, margin {100 * margin:.3g}"]
        broke += [f"{row['name']} {_told(row)}, margin {100 * self.trust_margin:g}" for row in trust if not row["ok"]]
        return {"promoted": not broke, "broke": broke, "margin": margin, "exact": exact, "trust": trust}

    def _trusted(self, row: dict[str, Any], least: int = 0) -> dict[str, Any]:
        """With whether it holds; all differences are candidate - student, and less is worse.

        A fall of fewer than `least` rows breaks nothing.
        """
        fell = row["mean"] < -self.trust_margin - _ROUNDING and row["high"] < 0
        return {**row, "ok": not fell or row["n"] * -row["mean"] < least - _ROUNDING}


def mcnemar(left: Sequence[float], right: Sequence[float]) -> float:
    """Two-sided exact p of McNemar's test: how likely so uneven a split of the rows is on which one of two fails."""
    pairs = list(zip(left, right, strict=True))
    only_left = sum(one > other for one, other in pairs)
    only_right = sum(one < other for one, other in pairs)
    n = only_left + only_right
    tail = sum(math.comb(n, k) for k in range(min(only_left, only_right) + 1))
    return min(1.0, tail / (1 << n) * 2)


def calibration_error(confidences: Numbers, hits: Numbers) -> float:
    """Mean distance of confidence and share of exact rows, over bins that hold equally many rows.

    Paper: Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599; bins of equal numbers, since a
    tuned model is nearly always sure. A confidence that is no number is none: 0. Hidden as NaN it would break nothing.
    """
    known = np.nan_to_num(np.asarray(confidences, float), nan=0.0)
    order = np.argsort(known, kind="stable")
    sure, right = known[order], np.asarray(hits, float)[order]
    bins = max(1, min(_BINS, len(sure) // 10))
    parts = zip(np.array_split(sure, bins), np.array_split(right, bins), strict=True)
    return float(sum(len(own) * abs(own.mean() - found.mean()) for own, found in parts) / len(sure))


def _compared(student: Sequence[float], candidate: Sequence[float], seed: int) -> dict[str, Any]:
    mean, low, high = paired_bootstrap(candidate, student, seed)
    shares = {"student": float(np.mean(student)), "artifact": float(np.mean(candidate))}
    return {**shares, "mean": mean, "low": low, "high": high, "n": len(student)}


def _calibration(
    student: tuple[Sequence[float], Sequence[float]], candidate: tuple[Sequence[float], Sequence[float]], seed: int
) -> dict[str, Any]:
    """1 - calibration error of both, and the difference with its 95 % interval, rows drawn together."""
    sides = [(np.asarray(sure, float), np.asarray(hits, float)) for sure, hits in (student, candidate)]
    generator, n = np.random.default_rng(seed), len(sides[0][0])
    drawn = generator.integers(0, n, (_ROUNDS, n))
    apart = [_error_between(sides, rows) for rows in drawn]
    shares = [1 - calibration_error(sure, hits) for sure, hits in sides]
    low, high = np.percentile(apart, [2.5, 97.5])
    mean = shares[1] - shares[0]
    found = {"student": shares[0], "artifact": shares[1], "mean": mean}
    return {**found, "low": min(mean, float(low)), "high": max(mean, float(high)), "n": n}


def _error_between(sides: Sequence[tuple[Any, Any]], rows: Any) -> float:
    first, second = (calibration_error(sure[rows], hits[rows]) for sure, hits in sides)
    return first - second


def _told(row: Mapping[str, Any]) -> str:
    """`fell from 92.0 to 85.5 % (-6.5 points, 95 %: -10.0 to -3.0, n 200)`."""
    points = f"{100 * row['mean']:+.1f} points, 95 %: {100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
    return f"went from {100 * row['student']:.1f} to {100 * row['artifact']:.1f} % ({points}, n {row['n']})"
