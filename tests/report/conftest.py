"""A run-like object over a small task, and answerers for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from supertiny.core.ledger import Bill
from supertiny.core.records import Answer, Call, Cost, Example, Request, Verdict
from tests.report.fakes import AREAS, TOOLS, FakeAnswerer, Replaying, gold_example

LEARNERS = [
    {"learner": "imitate", "lessons": 700, "before": None, "valid_exact": 0.6, "low": 0.53, "high": 0.66, "n": 200}
    | {"seconds": 300.0, "tokens": 90_000, "measured": {"1": 0.6}},
    {"learner": "reinforce", "lessons": 700, "before": 0.6, "valid_exact": 0.64, "low": 0.57, "high": 0.7, "n": 200}
    | {"seconds": 200.0, "tokens": 50_000, "measured": {"0": 0.6, "1": 0.64}},
]


@contextmanager
def _quiet(title: str, total: float, unit: str = "") -> Iterator[Callable[[float], None]]:
    yield lambda count: None


@pytest.fixture
def examples() -> list[Example]:
    return [gold_example(place) for place in range(60)]


@pytest.fixture
def fake_run(tmp_path: Path, examples: list[Example]) -> SimpleNamespace:
    labelled = tuple(
        Example(Request.from_text(f"light on in {a}", a), Answer((Call("light_on", {"area": a}),))) for a in AREAS
    )
    task = SimpleNamespace(
        name="tiny_home",
        description="Turn what a person says at home into a call.",
        tools=TOOLS,
        tool_map={tool.name: tool for tool in TOOLS},
        labelled=labelled,
        unlabelled=(),
        valid=(),
        test=tuple(examples),
        hash="0123456789abcdef",
        verify=lambda request, calls, gold=None: Verdict(
            "pass" if calls else "abstain", 0.0, "" if calls else "no call"
        ),
    )
    bills = [
        Bill("labelling the pool", 800, 0.0, 1800.0, 400_000, 9_000, 200_000),
        Bill("pipeline on test", 60, 0.0, 360.0, 30_000, 700, 0),
    ]
    recipe = "seed: 7\nprototype:\n  engine: {method: openai, api_key: sk-abcdefghijklmnopqrstuvwx}\n"
    filled = {"calls": 850, "cost": {"dollars": 0.0, "seconds": 1800.0, "tokens_in": 400_000, "tokens_out": 9_000}}
    summary = {"pool_rows": 800, "costs_by_step": {"pipeline on the pool": {"fill": filled}}}
    stages = {
        "prototype": {"key": "99", "seconds": 1900.0, "summary": summary},
        "transfer": {"key": "aa", "seconds": 900.0, "summary": {"student": {"learners": LEARNERS}}},
        "compress": {"key": "bb", "seconds": 300.0},
    }
    return SimpleNamespace(
        folder=tmp_path,
        task=task,
        seed=7,
        recipe=SimpleNamespace(text=recipe, sections={}),
        manifest={"stages": stages, "machine": {"processor": "Test CPU", "cores": 2}, "versions": {"numpy": "2"}},
        ledger=SimpleNamespace(bills=lambda: bills, lost=list),
        progress=SimpleNamespace(task=_quiet, note=lambda text: None),
    )


@pytest.fixture
def answerers(examples: list[Example]) -> dict[str, Callable[[], FakeAnswerer]]:
    golds = {example.request.id: example for example in examples}
    made = {
        "plain_prompt": Replaying("plain_prompt", golds, 2, Cost(0, 2.0, 900, 20), size=986_000_000),
        "pipeline": Replaying("pipeline", golds, 5, Cost(0, 6.0, 1500, 30), size=986_000_000),
        "student": FakeAnswerer("student", golds, 6, Cost(0, 0.1, 18, 14), size=270_000_000),
        "artifact": FakeAnswerer("artifact", golds, 6, Cost(0, 0.02, 18, 14), size=92_000_000),
    }
    return {name: (lambda fake=fake: fake) for name, fake in made.items()}
