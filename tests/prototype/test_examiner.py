"""What a search takes to be a request's price: the engine's time, all other work, and what is paid once beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supertiny.core import ledger as ledger_module
from supertiny.core.ledger import Ledger
from supertiny.core.progress import Progress
from supertiny.core.recipe import Recipe
from supertiny.core.records import Cost
from supertiny.core.run import Run
from supertiny.prototype.bench import Shelf, StepCost
from supertiny.prototype.search import examiner as examiner_module
from supertiny.prototype.search.examiner import Examiner
from supertiny.prototype.search.outcome import _figures
from supertiny.prototype.search.space import Candidate
from supertiny.prototype.settings import Settings
from tests.fake_engine import FakeEngine
from tests.slot_task import slot_model, slot_task

TASK = slot_task()
STACK = {"method": "stack", "steps": ["retrieve", "fill"], "rows": 6}


def candidate(*steps: Any) -> Candidate:
    return Candidate(steps, "openvino", "compact")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], Examiner]]:
    """Examiners of one ledger, as a search that is run again has them."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    run = Run(tmp_path, Recipe("x", TASK.folder, tmp_path, 7), TASK, ledger, Progress(quiet=True))
    yield lambda: Examiner(Settings(), run, TASK.valid, lambda settings: FakeEngine(slot_model))
    ledger.close()


def test_what_is_paid_once_is_told_of_every_pipeline_that_needs_it(opened: Callable[[], Examiner]) -> None:
    tried = [candidate(STACK), candidate(STACK, "check"), candidate("fill")]
    for _ in range(2):
        examiner = opened()
        examiner.measure(tried, 4, "first")
        examiner.measure(tried[:2], 8, "second")
        once = [examiner.measured(one).once for one in tried]
        assert [cost.calls for cost in once] == [6, 6, 0], "the second finds it made, and would have to pay alone"
        assert once[0] == once[1]
        assert once[0].cost.seconds > 0
        figures = _figures(examiner.measured(tried[0]))["once"]
        assert figures == {"calls": 6, "dollars": 0.0, "seconds": once[0].cost.seconds}
        examiner.close()


def test_work_beside_the_engine_counts_too(opened: Callable[[], Examiner], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is ten seconds later; the engine itself takes none of them."""
    monkeypatch.setattr(ledger_module, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    monkeypatch.setattr(examiner_module, "time", SimpleNamespace(perf_counter=count(0.0, 10.0).__next__))
    examiner = opened()
    examiner.measure([candidate("fill")], 5, "rows")
    seconds = examiner.measured(candidate("fill")).seconds
    assert seconds == pytest.approx([10 / 5] * 5)


def test_what_is_made_once_is_timed_apart() -> None:
    shelf = Shelf(clock=count(0.0, 1.0).__next__)
    paid = StepCost(Cost(seconds=3.0), 2)

    def outer() -> str:
        shelf.once("inner", lambda: shelf.pay("inner", paid))
        shelf.pay("outer", paid)
        return "made"

    assert [shelf.once("outer", outer) for _ in range(2)] == ["made", "made"]
    assert shelf.making == 2.0, "from the outermost's begin to its end, what is made within it not twice"
    assert shelf.price_of_used() == paid + paid
    shelf.once("inner", lambda: None)
    assert shelf.price_of_used() == paid
    assert shelf.price_of_used() == StepCost()
    assert shelf.fixed == {"inner": paid, "outer": paid}
