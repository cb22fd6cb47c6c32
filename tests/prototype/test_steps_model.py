"""Steps that read probabilities, and one that reads marks, with a real small model: its own letters and tokens."""

from __future__ import annotations

import math
from contextlib import closing

import pytest

from supertiny.core.methods import build
from supertiny.core.models import path_of
from supertiny.core.records import Call
from supertiny.prototype.label_shares import label_shares
from supertiny.prototype.steps.relevance import _chances
from tests.small_recipe import SMALLEST
from tests.step_bench import TASK, answered, bench, traces

REQUESTS = ("turn on the attic light", "turn off the hall light", "dim the office to 70", "everything on please")


@pytest.mark.model
def test_mark_relevance_and_route_with_a_real_model() -> None:
    path_of(SMALLEST)
    with closing(build("engines", {"method": "openvino", "model": SMALLEST}).open()) as engine:
        notes: list[str] = []
        at = bench(engine=engine, note=notes.append)
        for trace in build("steps", "mark").run(traces(*REQUESTS), at):
            assert 1 <= trace.asked <= 2
            assert "\n\n" not in trace.raw
            for call in trace.calls or ():
                said = [str(value).lower() in trace.request.text for value in call.arguments.values()]
                assert all(said), "code lets no other word through"

        called = [answered(text, Call("TurnOn", {"area": "Attic"})) for text in REQUESTS]
        judged = build("steps", "relevance").run(called, at)
        assert all(after.calls in ((), before.calls) for before, after in zip(called, judged, strict=True))
        assert [trace.asked for trace in judged] == [1] * len(called)
        assert "calls stand from a probability of" in notes[-1]
        chances = _chances([(trace, TASK.tools[0]) for trace in called], (), at)[1]
        assert all(0 < chance < 1 for chance in chances), "the engine tells probabilities, not words alone"

        routed = build("steps", {"method": "route", "by": "logprob", "calibrate": False}).run(traces(*REQUESTS), at)
        assert {trace.tool for trace in routed} <= {"", *(tool.name for tool in TASK.tools)}
        given, names = traces(*REQUESTS), ("TurnOn", "TurnOnAll", "")
        prompts = [at.prompt(trace) for trace in given]
        for short, longer in at.score(given, prompts, [names[:2]] * len(given))[1]:
            assert short >= longer, "what begins with the longer name begins with the shorter one"
        for shares in label_shares(given, [names] * len(given), at)[1]:
            assert math.isclose(shares.sum(), 1.0)
