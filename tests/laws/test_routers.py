"""Routers: doubt is 0..1; thresholds 1 and 0 give the two pure systems; what is routed is paid for once each."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supertiny.core.methods import build, cards
from supertiny.core.records import Answer, Call, Cost, Request
from supertiny.serve.routing import Cascade, Routing

ROUTERS = sorted(cards("routers"))
CONFIDENCES = st.none() | st.floats(allow_nan=True, allow_infinity=True)


class _Fixed:
    def __init__(self, name, confidences, dollars):
        self.name, self.confidences, self.dollars, self.asked = name, confidences, dollars, []

    def answer(self, requests):
        self.asked += [request.id for request in requests]
        cost = Cost(self.dollars)
        return [Answer((Call("f"),), "", cost, self.name, self.confidences.get(r.id)) for r in requests]


def _systems(router, threshold, confidences):
    known = {str(place): value for place, value in enumerate(confidences)}
    draft, fallback = _Fixed("draft", known, 1.0), _Fixed("fallback", {}, 10.0)
    cascade = Cascade(draft, fallback, Routing(build("routers", router), threshold))
    requests = [Request.from_text("x", id) for id in known]
    return cascade.answer(requests), fallback, known


@pytest.mark.parametrize("name", ROUTERS)
@settings(max_examples=50, deadline=None)
@given(confidence=CONFIDENCES, calls=st.integers(0, 2), text=st.text(max_size=5))
def test_doubt_is_a_share(name, confidence, calls, text):
    draft = Answer((Call("f"),) * calls, text, confidence=confidence)
    router = build("routers", name)
    doubt = router.doubt(Request.from_text(text), draft)
    assert 0.0 <= doubt <= 1.0
    assert doubt == router.doubt(Request.from_text(text), draft)


@pytest.mark.parametrize("name", ROUTERS)
@settings(max_examples=30, deadline=None)
@given(confidences=st.lists(CONFIDENCES, max_size=5))
def test_the_ends_of_the_threshold_are_the_pure_systems(name, confidences):
    drafts, asked, _ = _systems(name, 1.0, confidences)
    assert {a.by for a in drafts} <= {"draft"}
    assert asked.asked == []
    better, asked, known = _systems(name, 0.0, confidences)
    assert [a.by for a in better] == ["fallback"] * len(confidences)
    assert asked.asked == list(known)


@pytest.mark.parametrize("name", ROUTERS)
@settings(max_examples=30, deadline=None)
@given(confidences=st.lists(CONFIDENCES, max_size=5), threshold=st.floats(0, 1))
def test_every_draft_and_every_fallback_is_paid_for_once(name, confidences, threshold):
    answers, fallback, known = _systems(name, threshold, confidences)
    assert sum(a.cost.dollars for a in answers) == len(confidences) + 10 * len(fallback.asked)
    assert [id for id, a in zip(known, answers, strict=True) if a.by == "fallback"] == fallback.asked


def test_confidence_sends_on_the_less_sure():
    answers, *_ = _systems("confidence", 0.4, [0.9, 0.5, None, 0.61])
    assert [a.by for a in answers] == ["draft", "fallback", "fallback", "draft"]


def test_never_doubts_nothing():
    answers, *_ = _systems("never", 0.01, [0.0, None, 1.0])
    assert {a.by for a in answers} == {"draft"}
