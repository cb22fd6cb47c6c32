"""Scores by a real small model: what a person finds garbled, it finds unlikely."""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from supertiny.core.ledger import Ledger
from supertiny.core.models import path_of
from supertiny.prototype.bench import Shelf
from supertiny.prototype.curators._scores import STUDENT, losses_of, request_pairs
from tests.small_bench import small_bench
from tests.small_task import example, small_task

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
    pairs = request_pairs([example(text) for text in (*PLAIN, *garbled)])
    bench = small_bench(small_task(), tmp_path)
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger, closing(Shelf()) as shelf:
        wrap = partial(ledger.wrap, purpose="scores")
        bench = replace(bench, teacher=replace(bench.teacher, shelf=shelf, wrap=wrap))
        losses = losses_of(pairs, bench, STUDENT)
        plain, odd = losses[: len(PLAIN)], losses[len(PLAIN) :]
        right = sum(left < other for left in plain for other in odd) / len(plain) / len(odd)
        assert right > 0.9, "area under the curve of telling them apart by perplexity"
        shelf.close()
        assert losses_of(pairs, bench, STUDENT) == losses
        assert [bill.calls for bill in ledger.bills()] == [len(pairs)]
