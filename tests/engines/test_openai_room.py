"""A server that has no room now: refusals are waited out together, and are no failed tries."""

import itertools

import pytest

from supertiny.core.errors import UserError
from supertiny.core.records import Sampling
from supertiny.engines._openai_calls import Session
from tests.engines.test_openai import HI, opened, status


def test_refusals_for_a_minute_are_waited_for_and_are_no_tries(server):
    server.scripted = [status(429)] * 8
    engine = opened(server, retries=1)
    assert engine.complete([HI], Sampling())[0].text == "hi!"
    assert 60 < sum(engine.slept) < 180
    assert all(later > earlier for earlier, later in itertools.pairwise(engine.slept[:-1]))


def test_a_server_that_never_has_room_is_given_up_after_the_longest_wait(server):
    server.scripted = [status(503, '{"error": {"message": "no room"}}')] * 40
    engine = opened(server, retries=1, longest_wait_seconds=60)
    with pytest.raises(UserError, match=r"503: no room; given up after \d+ tries"):
        engine.complete([HI], Sampling())
    assert 60 <= sum(engine.slept) < 300


def test_while_one_is_refused_no_other_begins(server):
    engine = opened(server, concurrency=1)

    def refuse(index, answer):
        server.scripted = [status(429, Retry_After="9")] if index == 0 else []

    engine.complete([HI] * 3, Sampling(), done=refuse)
    assert len(engine.slept) == 1
    session = Session([], None)
    session.refuse(started=1.0, now=2.0, asked_seconds=3.0, first_seconds=0.5)
    session.refuse(started=1.5, now=2.1, asked_seconds=0.0, first_seconds=0.5)  # it began before the pause
    assert (session.not_before, session.pause_seconds) == (5.25, 0.5)
    session.refuse(started=6.0, now=6.0, asked_seconds=0.0, first_seconds=0.5)
    assert (session.not_before, session.pause_seconds) == (6.5, 1.0)
    session.answer(started=5.0)
    assert session.pause_seconds == 1.0
    session.answer(started=7.0)
    assert session.pause_seconds == 0.0
