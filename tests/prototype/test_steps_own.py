"""A step that a task brings along as a file: named in a recipe, listed by check, part of the task; and steps' price."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny import cli, pipeline
from supertiny.core.errors import UserError
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build, own_methods, validated
from supertiny.core.progress import Progress
from supertiny.core.recipe import Recipe, read_recipe
from supertiny.core.records import Call, Cost, Price
from supertiny.core.run import Run
from supertiny.core.task import load_task
from supertiny.prototype import teacher
from supertiny.prototype.bench import Shelf, StepCost
from supertiny.prototype.estimate import estimates
from supertiny.prototype.settings import Settings
from supertiny.prototype.teacher import Pipeline, _step_names
from tests.fake_engine import FakeEngine
from tests.small_recipe import write_recipe
from tests.small_task import write_task
from tests.step_bench import answered, author, bench, traces

SHOUT = '''"""Puts every lamp of an answer into one area.

Use when: the house has one area.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from supertiny.core.records import Call


@dataclass(frozen=True)
class Shout:
    """The area of every call is replaced."""

    area: str = "Attic"
    """Area that is written."""

    calls_per_request = 0.0

    def run(self, traces, bench):
        def moved(call):
            return Call(call.tool, {**call.arguments, "area": self.area})

        return [replace(t, calls=None if t.calls is None else tuple(moved(c) for c in t.calls)) for t in traces]
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_task(tmp_path / "task")
    (made / "steps").mkdir()
    (made / "steps" / "shout.py").write_text(SHOUT, encoding="utf-8")
    (made / "steps" / "_words.py").write_text("1 / 0\n", encoding="utf-8")
    return made


def run_of(folder: Path) -> Run:
    task = load_task(folder)
    results = folder.parent / "run"
    return Run(results, Recipe("x", folder, results, 7), task, Ledger(results / "l.sqlite"), Progress(quiet=True))


def test_a_step_of_the_task_is_a_method_like_all_others(folder: Path) -> None:
    own = own_methods("steps", folder / "steps")
    block = {"method": "shout", "area": "Hall"}
    settings = validated(Settings, {"steps": ["fill", block]}, "prototype", own)
    engine = FakeEngine(lambda *_: "TurnOn area Garden")
    made = teacher.pipeline_of(settings, run_of(folder), engine, "x")
    (answer,) = made.answer([traces("x")[0].request])
    assert answer.calls == (Call("TurnOn", {"area": "Hall"}),)
    assert list(made.costs_by_step) == ["fill", "shout"]
    assert estimates(settings, load_task(folder))[1].calls == 18
    with pytest.raises(UserError, match=r"did you mean 'area'|no setting 'aera'"):
        build("steps", {"method": "shout", "aera": 1}, "prototype.steps.0", own)
    with pytest.raises(UserError, match="no method 'shout'"):
        build("steps", "shout")
    with pytest.raises(UserError, match="did you mean 'shout'"):
        build("steps", "shoot", "", own)


def test_a_step_of_the_task_may_stand_inside_another(folder: Path) -> None:
    block = {"method": "cascade", "engine": {"method": "replay", "source": "x"}, "steps": ["fill", "shout"]}
    own = own_methods("steps", folder / "steps")
    step = build("steps", block, "prototype.steps.0", own)
    at = bench(task=load_task(folder), shelf=Shelf(lambda _: FakeEngine(author)))
    (found,) = step.run(traces("dim the hall"), at)
    assert found.calls == (Call("Dim", {"area": "Attic", "level": 5}),)
    assert step.calls_per_request == pytest.approx(2.6)
    with pytest.raises(UserError, match="shout"):
        build("steps", block)


def test_the_file_is_part_of_the_task(folder: Path) -> None:
    before = load_task(folder).hash
    path = folder / "steps" / "shout.py"
    path.write_text(SHOUT.replace("Attic", "Office"), encoding="utf-8")
    changed = load_task(folder).hash
    assert changed != before
    path.unlink()
    assert load_task(folder).hash not in (before, changed)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("vote", SHOUT, "steps has a method 'vote' already"),
        ("twice", SHOUT + "\n\nclass Other:\n    pass\n", "one public class; found Shout, Other"),
        ("empty", "", "one public class; found none"),
        ("broken", "class Broken(:\n", "cannot be read as Python"),
    ],
)
def test_a_file_that_is_no_method_is_told(folder: Path, name: str, text: str, told: str) -> None:
    (folder / "steps" / f"{name}.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"{name}.py") as caught:
        own_methods("steps", folder / "steps")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nowhere_to_be_found\nclass Bad: ...", "ModuleNotFoundError"),
        (SHOUT.replace("(frozen=True)", ""), "is not a frozen dataclass"),
        (SHOUT.replace("def run(", "def walk("), "has no run"),
        (SHOUT.replace("    calls_per_request = 0.0\n", ""), "has no calls_per_request"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_when_it_is_used(folder: Path, text: str, told: str) -> None:
    (folder / "steps" / "shout.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        build("steps", "shout", "", own_methods("steps", folder / "steps"))


def recipe_with(tmp_path: Path, *steps: Any) -> Path:
    path = write_recipe(tmp_path)
    recipe = json.loads(path.read_text(encoding="utf-8"))
    recipe["prototype"]["steps"] = list(steps)
    path.write_text(json.dumps(recipe), encoding="utf-8")
    (tmp_path / "task" / "steps").mkdir()
    (tmp_path / "task" / "steps" / "shout.py").write_text(SHOUT, encoding="utf-8")
    return path


def test_check_lists_steps_of_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe_with(tmp_path, "fill", {"method": "shout", "area": "Hall"})
    with pytest.raises(SystemExit):
        cli.main(["check", str(path)])
    out = capsys.readouterr().out
    assert "no mistakes" in out
    assert "shout: a step of the task's own" in out
    assert "Puts every lamp of an answer into one area." in out


def test_check_tells_a_colliding_file_and_all_else_at_once(tmp_path: Path) -> None:
    path = recipe_with(tmp_path, "fill", {"method": "shout", "aera": 1})
    (tmp_path / "task" / "steps" / "vote.py").write_text(SHOUT, encoding="utf-8")
    with pytest.raises(UserError, match="has a method 'vote' already") as caught:
        pipeline.check(read_recipe(path))
    assert len(getattr(caught.value, "errors", [])) >= 2


def test_what_each_step_costs_is_summed_by_name() -> None:
    blocks = ["retrieve", "fill", "check", {"method": "vote", "samples": 1}, "check"]
    steps = [build("steps", block) for block in blocks]
    assert _step_names(steps) == ["retrieve", "fill", "check", "vote", "check 2"]
    at = bench()
    made = Pipeline(steps, at, chunk=2)
    requests = [trace.request for trace in traces()]
    found = made.trace(requests)
    costs = made.costs_by_step
    assert list(costs) == _step_names(steps)
    assert costs["retrieve"] == StepCost()
    assert sum((cost.cost.dollars for cost in costs.values()), 0.0) == pytest.approx(
        sum(trace.cost.dollars for trace in found)
    )
    assert sum(cost.calls for cost in costs.values()) == len(at.engine.asked)  # type: ignore[attr-defined]
    for trace in found:
        assert [name for name, _ in trace.steps] == _step_names(steps)
        assert sum((spent.calls for _, spent in trace.steps), 0) == trace.asked
    # One request cannot be read: `fill` and `vote` try it twice, `check` twice, and so does the second `check`.
    assert costs["fill"].calls == len(requests) + 1
    assert costs["check"].calls == costs["check 2"].calls == 2
    answers = made.answer(requests)
    assert [answer.calls for answer in answers] == [trace.calls or () for trace in found]
    assert made.costs_by_step["fill"].calls == 2 * (len(requests) + 1)


def test_what_is_paid_once_stands_beside_the_steps() -> None:
    judge = build("steps", {"method": "judge", "guidelines": "As asked."})
    made = Pipeline([build("steps", "fill"), judge], bench(), chunk=4)
    made.answer([trace.request for trace in traces()])
    costs = made.costs_by_step
    assert list(costs) == ["fill", "judge", "judge: measuring its agreement"]
    assert costs["judge: measuring its agreement"].calls == 48


def test_engines_of_steps_are_opened_once_and_closed_with_the_pipeline() -> None:
    closed: list[str] = []

    class Closing(FakeEngine):
        def close(self) -> None:
            closed.append(self.name)

    opened: list[Any] = []

    def open_engine(block: Any) -> Closing:
        opened.append(block)
        return Closing(author, name=block["source"])

    cheap = {"method": "replay", "source": "cheap"}
    steps = [
        build("steps", {"method": "cascade", "engine": cheap}),
        build("steps", {"method": "judge", "engine": cheap, "guidelines": "x"}),
    ]
    shelf = Shelf(open_engine)
    made = Pipeline(steps, replace(bench(shelf=shelf), engine=Closing(author, name="dear")), chunk=2)
    made.answer([trace.request for trace in traces()])
    made.without_ledger().answer([traces()[0].request])
    assert opened == [cheap]
    made.close()
    assert closed == ["cheap", "dear"]


def test_latency_of_a_second_engine_is_measured_without_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    cheap = FakeEngine(author, Price(dollars_per_hour=1), "cheap")
    block = {"method": "cascade", "engine": {"method": "replay", "source": "cheap"}}
    at = bench(
        engine=ledger.wrap(FakeEngine(author), "x"),
        shelf=Shelf(lambda _: cheap),
        wrap=lambda engine: ledger.wrap(engine, "x"),
    )
    made = Pipeline([build("steps", block)], at, chunk=2)
    request = traces("dim the hall")[0].request
    for _ in range(2):
        made.answer([request])
    assert len(cheap.asked) == 1
    made.without_ledger().answer([request])
    assert len(cheap.asked) == 2


def test_a_difference_of_costs_is_what_came_between() -> None:
    more, less = StepCost(Cost(3.0, 2.0, 10, 5, 1), 4), StepCost(Cost(1.0, 0.5, 4, 2, 1), 1)
    assert more - less == StepCost(Cost(2.0, 1.5, 6, 3, 0), 3)
    assert less + (more - less) == more


def test_an_own_step_leaves_no_trace_of_itself_elsewhere(folder: Path) -> None:
    """Two tasks may have steps of one name: each gets its own."""
    other = folder.parent / "other"
    (other / "steps").mkdir(parents=True)
    (other / "steps" / "shout.py").write_text(SHOUT.replace("Attic", "Cellar"), encoding="utf-8")
    found = [
        build("steps", "shout", "", own_methods("steps", each / "steps")).run([answered("x", Call("TurnOn", {}))], None)
        for each in (folder, other)
    ]
    assert [trace.calls[0].arguments["area"] for (trace,) in found] == ["Attic", "Cellar"]
    assert "shout" not in sys.modules
