"""Ways of writing the same answer: equal calls for the scorer, other words for the one who learns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from supertiny.core.records import Answer, Call, Example
from supertiny.prototype.curators._rewriting import stated

GIVEN = "given"


def _by_request(row: Example, answer: Answer) -> Answer:
    """Calls in the order in which the request states their values; those that it does not state, last."""

    def first(call: Call) -> int:
        spots = (spot.start() for value in call.arguments.values() for spot in stated(value, row.request.text))
        return min(spots, default=len(row.request.text))

    return replace(answer, calls=tuple(sorted(answer.calls, key=first)))


def _by_name(row: Example, answer: Answer) -> Answer:
    return replace(answer, calls=tuple(sorted(answer.calls, key=lambda call: call.tool)))


def _calls_alone(row: Example, answer: Answer) -> Answer:
    return replace(answer, text="") if answer.calls else answer


STYLES: Mapping[str, Callable[[Example, Answer], Answer]] = {
    GIVEN: lambda row, answer: answer,
    "calls_alone": _calls_alone,
    "request_order": _by_request,
    "name_order": _by_name,
}
"""By name: the answer as it is; without words beside its calls; its calls in the request's or the names' order."""


def in_style(row: Example, style: str) -> Answer:
    """The row's answer in a style; it means the same."""
    return STYLES[style](row, row.answer or Answer())
