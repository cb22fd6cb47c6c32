"""What the server counts, in Prometheus' text format. All is updated on the event loop, so nothing is locked."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from supertiny.core.records import Cost

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Histogram:
    """Counts of values by upper bound, their sum and number."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> Iterator[str]:
        below = 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            below += count
            yield f'{name}_bucket{{le="{bound:g}"}} {below}'
        yield f'{name}_bucket{{le="+Inf"}} {self.count}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {self.count}"


def _no_queue() -> int:
    return 0


@dataclass
class Metrics:
    """Numbers of one server since it started."""

    requests: Counter[str] = field(default_factory=Counter)
    """Chat requests by outcome: call, text, refused, overloaded, failed, gone."""
    seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    """From the arrival of a chat request to its answer."""
    batches: Histogram = field(default_factory=lambda: Histogram(_SIZES))
    """Sizes of the batches that the model was given."""
    tokens: Counter[str] = field(default_factory=Counter)
    """Tokens by direction: in, out, cached (the part of in that was computed before)."""
    escalations: int = 0
    """Requests that the fallback answered."""
    queue_depth: Callable[[], int] = _no_queue
    """Gives the number of requests that wait for the model."""

    def spend(self, cost: Cost) -> None:
        self.tokens.update({"in": cost.tokens_in, "out": cost.tokens_out, "cached": cost.tokens_cached})

    @property
    def text(self) -> str:
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from _head("supertiny_requests_total", "counter", "Chat requests by outcome.")
        for outcome, count in sorted(self.requests.items()):
            yield f'supertiny_requests_total{{outcome="{outcome}"}} {count}'
        yield from _head("supertiny_request_seconds", "histogram", "From a chat request's arrival to its answer.")
        yield from self.seconds.lines("supertiny_request_seconds")
        yield from _head("supertiny_batch_size", "histogram", "Requests that the model answered at once.")
        yield from self.batches.lines("supertiny_batch_size")
        yield from _head("supertiny_tokens_total", "counter", "Tokens read and written by direction.")
        for direction in ("cached", "in", "out"):
            yield f'supertiny_tokens_total{{direction="{direction}"}} {self.tokens[direction]}'
        yield from _head("supertiny_queue_depth", "gauge", "Requests that wait for the model.")
        yield f"supertiny_queue_depth {self.queue_depth()}"
        yield from _head("supertiny_escalations_total", "counter", "Requests that the fallback answered.")
        yield f"supertiny_escalations_total {self.escalations}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
