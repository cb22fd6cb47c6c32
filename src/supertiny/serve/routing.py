"""Which answerer has the last word: the draft's, or where its doubt is above the threshold, the fallback's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from supertiny.core.protocols import Answerer, Router
from supertiny.core.records import Answer, Request
from supertiny.serve.routers.never import Never


@dataclass(frozen=True)
class Routing:
    """A router with its threshold, 0..1: 1 keeps every draft, 0 keeps none."""

    router: Router = field(default_factory=Never)
    threshold: float = 0.5

    def escalates(self, doubt: float) -> bool:
        return doubt > self.threshold or self.threshold <= 0


@dataclass(frozen=True)
class Cascade:
    """An answerer of two: `draft` answers all requests, `fallback` those that the routing sends on."""

    draft: Answerer
    fallback: Answerer
    routing: Routing
    name: str = "cascade"

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in order; an answer of the fallback carries the cost of both."""
        answers = self.draft.answer(requests)
        doubts = [self.routing.router.doubt(request, draft) for request, draft in zip(requests, answers, strict=True)]
        sent_on = [place for place, doubt in enumerate(doubts) if self.routing.escalates(doubt)]
        if sent_on:
            better = self.fallback.answer([requests[place] for place in sent_on])
            for place, answer in zip(sent_on, better, strict=True):
                answers[place] = with_draft_cost(answer, answers[place])
        return answers


def with_draft_cost(answer: Answer, draft: Answer) -> Answer:
    """The fallback's answer with the cost of both: the draft was paid for too."""
    return replace(answer, cost=draft.cost + answer.cost)
