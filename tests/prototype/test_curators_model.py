"""Scores by a real small model: what a person finds garbled, it finds unlikely."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from supertiny.core.ledger import Ledger
from supertiny.core.models import path_of
from supertiny.prototype.curators._scores import STUDENT, Scores, losses_of, request_pairs
from tests.small_task import example

PLAIN = [
    f"{please} {what} in the {room}"
    for please in ("please", "could you", "I would like you to")
    for what in ("turn on the light", "close the window", "set the heating to twenty degrees")
    for room in ("kitchen", "bedroom")
]


@pytest.mark.model
def test_garbled_requests_are_less_likely_than_plain_ones(tmp_path: Path) -> None:
    path_of(STUDENT["model"])
    generator = random.Random(1)
    garbled = ["".join(generator.sample(text, len(text))) for text in PLAIN]
    ledger = Ledger(tmp_path / "ledger.sqlite")
    scores = Scores(wrap=lambda engine: ledger.wrap(engine, "scores"))
    pairs = request_pairs([example(text) for text in (*PLAIN, *garbled)])
    losses = losses_of(pairs, scores, STUDENT)
    plain, odd = losses[: len(PLAIN)], losses[len(PLAIN) :]
    right = sum(left < other for left in plain for other in odd) / len(plain) / len(odd)
    assert right > 0.9, "area under the curve of telling them apart by perplexity"
    again = Scores(wrap=lambda engine: ledger.wrap(engine, "scores"))
    assert losses_of(pairs, again, STUDENT) == losses
    assert [bill.calls for bill in ledger.bills()] == [len(pairs)]
    scores.close()
    again.close()
    ledger.close()
