"""A small task and answerers that err in ways that are known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from supertiny.core.records import Answer, Call, Cost, Example, Request, Tool

LIGHT = {
    "type": "object",
    "properties": {"area": {"type": "string"}, "level": {"type": "integer"}},
    "required": ["area"],
}
TOOLS = (
    Tool("light_on", "Turns lights on", LIGHT),
    Tool("light_off", "Turns lights off", LIGHT),
    Tool("get_time", "Tells the time", {"type": "object", "properties": {}}),
)
AREAS = ("kitchen", "Wohnzimmer", "спальня", "客厅", "🛁 bath")
FREE = Cost()
HOSTILE = "</script><script>alert('hi')</script> & <b>bold</b>"


def gold_example(place: int) -> Example:
    """Row `place`: light on, light off, time and chit-chat take turns."""
    area = AREAS[place % len(AREAS)]
    kinds: tuple[tuple[str, tuple[Call, ...]], ...] = (
        (f"lights on in {area} at {place} percent", (Call("light_on", {"area": area, "level": place}),)),
        (f"please switch off {area} number {place}", (Call("light_off", {"area": area}),)),
        (f"what time is it, {place}", (Call("get_time"),)),
        (f"tell me joke {place}" if place != 3 else HOSTILE, ()),
    )
    text, calls = kinds[place % 4]
    provenance = {"template": f"template {place % 4}"}
    return Example(Request.from_text(text, f"test-{place}"), Answer(calls), provenance=provenance)


class FakeAnswerer:
    """Right on every row but those whose number divides by `wrong_every`; counts what it is asked."""

    def __init__(
        self, name: str, golds: Mapping[str, Example], wrong_every: int, cost: Cost = FREE, size: int = 0
    ) -> None:
        self.name = name
        self.golds = golds
        self.wrong_every = wrong_every
        self.cost = cost
        self.bytes = size
        self.batches: list[int] = []
        self.closed = False

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        self.batches.append(len(requests))
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Answer:
        gold = self.golds[request.id].answer
        assert gold is not None
        if int(request.id.rpartition("-")[2]) % self.wrong_every:
            return Answer(gold.calls, "", self.cost, self.name, 0.9)
        calls = tuple(Call(call.tool, {**call.arguments, "area": "garage"}) for call in gold.calls)
        return Answer(calls or (Call("get_time"),), "", self.cost, self.name, 0.4, raw="as the model wrote it")

    def close(self) -> None:
        self.closed = True


class Replaying(FakeAnswerer):
    """One that reads from a ledger; `bare` is what really computes."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.bare = FakeAnswerer(*arguments, **settings)

    def without_ledger(self) -> FakeAnswerer:
        return self.bare
