"""Steps that cannot follow each other are refused before anything is spent."""

from __future__ import annotations

from typing import Any

import pytest

from supertiny.core.methods import build
from supertiny.prototype.demands import mistakes
from supertiny.prototype.settings import Settings
from supertiny.prototype.steps._order import misplaced
from tests.step_bench import TASK

STACK = {"method": "stack", "steps": ["retrieve", "fill"]}


def told(*steps: Any) -> list[str]:
    return [error.problem for error in misplaced([build("steps", block) for block in steps], "steps")]


@pytest.mark.parametrize(
    "steps",
    [
        ["retrieve", "classify", STACK, "check", "vote"],
        ["route", "plan", "check", "relevance", "execute", "vote"],
        ["plan", "execute", "plan", "execute"],
        ["plan"],
    ],
)
def test_orders_that_work(steps: list[Any]) -> None:
    assert told(*steps) == []


def test_labelled_rows_do_not_go_through_what_stands_before_a_stack() -> None:
    assert told("fill", "retrieve", STACK) == [
        "steps.2: stack stands behind fill, which its labelled rows do not go through"
    ]


@pytest.mark.parametrize("name", ["fill", "mark", "plain", "route", "vote", STACK])
def test_a_plan_is_not_written_anew_without_its_references(name: Any) -> None:
    method = name if isinstance(name, str) else "stack"
    found = told("plan", "check", name, "execute")
    assert f"steps.2: {method} writes the calls of plan anew, without their references" in found


def test_it_is_told_with_its_place_within_other_steps_too() -> None:
    inner = {"method": "cascade", "engine": "openvino", "steps": ["fill", STACK]}
    lines = [str(error) for error in mistakes(Settings(steps=("retrieve", inner), curators=()), TASK)]
    (line,) = [line for line in lines if "stack stands behind" in line]
    assert line.startswith("prototype.steps.1.steps.1: stack stands behind fill")
    assert line.endswith("(put that step into the steps of stack)")
