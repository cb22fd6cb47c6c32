"""Measures one answerer: single requests for latency, then all of test for quality and cost."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from supertiny.core import scoring
from supertiny.core.protocols import Answerer
from supertiny.core.records import Answer, Call, Cost, Example, Request, Tool
from supertiny.report.settings import Settings

NO_CALL = "(no call)"
_LEAST_LATENCIES = 10  # measured whatever time they take


@dataclass(frozen=True)
class Measurement:
    """What was seen of one answerer; everything else is computed from it."""

    name: str
    answers: tuple[Answer, ...]
    """One per test row."""
    latencies: tuple[float, ...]
    """Seconds of single requests, one at a time."""
    batch_seconds: float
    """Wall time of answering all rows in batches."""
    from_ledger: bool
    """Whether answers may have been read from the ledger: then their recorded seconds count, not the wall time."""
    bytes: int = 0
    """Size of the model, 0 where there is none."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"answers": [_answer_to_json(answer) for answer in self.answers]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measurement:
        answers = tuple(_answer_from_json(answer) for answer in value["answers"])
        return cls(**{**value, "answers": answers, "latencies": tuple(value["latencies"])})


def measure(
    answerer: Answerer,
    requests: Sequence[Request],
    settings: Settings,
    seed: int,
    tick: Callable[[float], None] = lambda count: None,
) -> Measurement:
    """`tick` is told of every request of the batched part. Raises ValueError where answers do not pair with requests.

    Latency comes first, so that an engine's prefix cache does not hold the rows it is timed on.
    """
    latencies = measure_latency(_really_computing(answerer), requests, settings, seed)
    answers: list[Answer] = []
    began = time.perf_counter()
    for start in range(0, len(requests), settings.batch_requests):
        batch = requests[start : start + settings.batch_requests]
        given = answerer.answer(batch)
        if len(given) != len(batch):
            raise ValueError(f"{answerer.name} gave {len(given)} answers to {len(batch)} requests")
        answers += given
        tick(len(batch))
    return Measurement(
        name=answerer.name,
        answers=tuple(answers),
        latencies=tuple(latencies),
        batch_seconds=time.perf_counter() - began,
        from_ledger=hasattr(answerer, "without_ledger"),
    )


def measure_latency(answerer: Answerer, requests: Sequence[Request], settings: Settings, seed: int) -> list[float]:
    """Seconds of single requests drawn by the seed, after a warm-up on other ones where there are enough."""
    drawn = random.Random(f"latency {seed}").sample(list(requests), len(requests))
    for request in drawn[::-1][: settings.warm_up_requests]:
        answerer.answer([request])
    seconds: list[float] = []
    for request in drawn[: settings.latency_requests]:
        if len(seconds) >= _LEAST_LATENCIES and sum(seconds) > settings.latency_seconds:
            break
        began = time.perf_counter()
        answerer.answer([request])
        seconds.append(time.perf_counter() - began)
    return seconds


def figures(
    measurement: Measurement, examples: Sequence[Example], tools: Mapping[str, Tool], dollars_per_hour: float
) -> dict[str, Any]:
    """The answerer's entry of report.json."""
    return {
        "name": measurement.name,
        **quality(measurement.answers, examples, tools),
        **_latency(measurement.latencies),
        "bytes": measurement.bytes,
        **cost(measurement, dollars_per_hour),
    }


def quality(answers: Sequence[Answer], examples: Sequence[Example], tools: Mapping[str, Tool]) -> dict[str, Any]:
    """Exact calls with their interval, argument F1, similarity, and accuracy by function.

    `tools` are those of requests that bring none of their own.
    """
    golds = [gold_of(example) for example in examples]
    known = [{tool.name: tool for tool in example.request.tools} or tools for example in examples]
    rows = list(zip(answers, golds, known, strict=True))
    hits = [scoring.is_exact(answer, gold, own) for answer, gold, own in rows]
    counts = np.zeros(3, dtype=int)
    similar, chosen = 0.0, 0
    by_function: dict[str, list[bool]] = defaultdict(list)
    for (answer, gold, own), hit in zip(rows, hits, strict=True):
        counts += scoring.argument_counts(answer.calls, gold, own)
        similar += scoring.similarity(answer.calls, gold, own)
        chosen += answer.readable and sorted(call.tool for call in answer.calls) == sorted(call.tool for call in gold)
        by_function[function_of(gold)].append(hit)
    n = len(answers)
    low, high = scoring.wilson_interval(sum(hits), n)
    silent = by_function.get(NO_CALL, [])
    return {
        "exact": sum(hits) / n,
        "exact_low": low,
        "exact_high": high,
        "n": n,
        "argument_f1": scoring.f1(*(int(count) for count in counts)),
        "similarity": similar / n,
        "function_accuracy": chosen / n,
        "no_call_exact": sum(silent) / len(silent) if silent else None,
        "no_call_n": len(silent),
        "by_function": {name: {"hits": sum(found), "n": len(found)} for name, found in sorted(by_function.items())},
    }


def cost(measurement: Measurement, dollars_per_hour: float) -> dict[str, Any]:
    """Means per request. Dollars are the answerer's own where it sets them, else the machine's price for its time."""
    costs = [answer.cost for answer in measurement.answers]
    n = len(costs)
    recorded = sum(each.seconds for each in costs) / n
    use_recorded = measurement.from_ledger and recorded > 0
    seconds = recorded if use_recorded else measurement.batch_seconds / n
    own = sum(each.dollars for each in costs) / n
    return {
        "seconds_per_request": seconds,
        "seconds_from": "ledger" if use_recorded else "batched run",
        "tokens_in": sum(each.tokens_in for each in costs) / n,
        "tokens_out": sum(each.tokens_out for each in costs) / n,
        "tokens_cached": sum(each.tokens_cached for each in costs) / n,
        "dollars_per_1000": 1000 * (own if own > 0 else seconds / 3600 * dollars_per_hour),
        "dollars_from": "answerer" if own > 0 else "machine price",
    }


def gold_of(example: Example) -> tuple[Call, ...]:
    """Raises ValueError where a test row has no gold, which the task loader refuses."""
    if example.answer is None:
        raise ValueError(f"test row {example.request.id!r} has no gold calls")
    return example.answer.calls


def function_of(calls: Sequence[Call]) -> str:
    """Names of the called functions, or `(no call)`."""
    return " + ".join(sorted(call.tool for call in calls)) or NO_CALL


def _really_computing(answerer: Answerer) -> Answerer:
    """The answerer with nothing between it and its engine."""
    bare: Callable[[], Answerer] | None = getattr(answerer, "without_ledger", None)
    return bare() if bare else answerer


def _latency(seconds: Sequence[float]) -> dict[str, Any]:
    middle, slow = np.percentile(seconds, [50, 95]) if seconds else (None, None)
    return {
        "p50_seconds": None if middle is None else float(middle),
        "p95_seconds": None if slow is None else float(slow),
        "latency_n": len(seconds),
    }


def _answer_to_json(answer: Answer) -> dict[str, Any]:
    return asdict(answer) | {"calls": [call.to_json() for call in answer.calls]}


def _answer_from_json(value: Mapping[str, Any]) -> Answer:
    calls = tuple(Call.from_json(call) for call in value["calls"])
    return Answer(**{**value, "calls": calls, "cost": Cost(**value["cost"])})
