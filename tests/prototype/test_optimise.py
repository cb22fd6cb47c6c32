"""The search for the best pipeline, with an engine whose exactness depends on how many examples it is shown."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from supertiny.core import ledger as ledger_module
from supertiny.core.errors import UserError, UserErrors
from supertiny.core.files import read_json
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.methods import validated
from supertiny.core.progress import Progress
from supertiny.core.recipe import Recipe
from supertiny.core.records import Call, Completion, Example, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.core.run import Run
from supertiny.core.task import Task
from supertiny.prototype import optimise
from supertiny.prototype.search import examiner
from supertiny.prototype.search.settings import Settings as Search
from supertiny.prototype.settings import Settings
from tests.fake_engine import FakeEngine
from tests.small_task import AREAS, example, small_task

VALID = 120
RIGHT_SHARE = {0: 0.1, 3: 0.5, 6: 0.9, 8: 0.8, 10: 0.7}
OPTIMUM = [{"method": "retrieve", "examples": 6}, "fill"]
SPACE: dict[str, Any] = {"least_rows": 10}


def valid_rows() -> list[Example]:
    return [
        example(f"case {n}: light in the {AREAS[n % 6]}", [Call("TurnOn", {"area": AREAS[n % 6]})], f"valid-{n}")
        for n in range(VALID)
    ]


def author(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """Right on a share of rows that the number of shown examples says; wrong answers are valid calls."""
    shown = min(10, sum(message["role"] == "assistant" for message in prompt.messages))
    text = next(m["content"] for m in reversed(prompt.messages) if m["content"].startswith("case"))
    number, area = int(text.split(":")[0].split()[1]), text.split()[-1]
    luck = random.Random(number).random()
    return f"{'TurnOn' if luck < RIGHT_SHARE.get(shown, 0.0) else 'TurnOff'} area {area}"


class Priced(FakeEngine):
    """Longer prompts cost more; scores are higher for functions that the request names, where told to be careful."""

    def __init__(self, name: str = "fake") -> None:
        super().__init__(author, Price(dollars_per_million_in=1.0), name)
        self.scored = 0
        self.closed = 0

    def _write(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> Completion:
        length = sum(len(message["content"]) for message in prompt.messages)
        return replace(super()._write(prompt, sampling, grammar), tokens_in=length)

    def score(self, prompts: Any, continuations: Any, top: int = 1) -> list[TokenScores]:
        self.scored += len(prompts)
        return [self._scored(prompt, text) for prompt, text in zip(prompts, continuations, strict=True)]

    def _scored(self, prompt: Prompt, text: str) -> TokenScores:
        careful = "careful" in prompt.messages[0]["content"]
        words = {"TurnOn": "illuminate", "TurnOff": "dark", "Dim": "brightness"}
        named = words[text.split()[0]] in prompt.messages[-1]["content"]
        logprob = np.array([-0.1 if careful and named else -3.0])
        none = np.zeros((1, 0))
        return TokenScores(np.array([1]), none.astype(int), none, logprob)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def task() -> Task:
    return small_task(valid=valid_rows())


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Priced:
    opened = Priced()
    monkeypatch.setattr(optimise, "open_engine", lambda settings: opened)
    # Each look at the clock is a second later: a call takes one second, whatever this machine does meanwhile.
    monkeypatch.setattr(ledger_module, "time", SimpleNamespace(perf_counter=count(1.0).__next__))
    # All other work takes no time.
    monkeypatch.setattr(examiner, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    return opened


def run_search(
    task: Task, folder: Path, budget: Budget | None = None, recipe: dict[str, Any] | None = None, **said: Any
) -> dict[str, Any]:
    settings = validated(Settings, {"steps": ["retrieve", "fill"], "engine": "openvino", **(recipe or {})}, "prototype")
    settings = replace(settings, steps=tuple(settings.steps), chunk=16)
    search = validated(Search, {**SPACE, "examples": [0, 3, 6, 10], "steps": [["fill"]], **said}, "optimise")
    search = replace(search, budget=budget or search.budget)
    ledger = Ledger(folder / "ledger.sqlite", settings.budget)
    try:
        run = Run(folder, Recipe("x", task.folder, folder, 7), task, ledger, Progress(quiet=True))
        return optimise.optimise(settings, search, run)
    finally:
        ledger.close()


OWN = {"steps": [{"method": "retrieve", "examples": 3}, "fill"]}


def test_it_finds_the_optimum_with_fewer_calls_than_a_grid(task: Task, engine: Priced, tmp_path: Path) -> None:
    outcome = run_search(task, tmp_path, recipe=OWN, optional=["check", "vote"])
    chosen = outcome["chosen"]
    assert chosen["prototype"]["steps"] == OPTIMUM, "check and vote help nothing here, and vote costs"
    assert not chosen["is_present"]
    assert outcome["rounds"] == [{"rows": 10, "pipelines": 16}, *outcome["rounds"][1:]]
    rows = [one["rows"] for one in outcome["rounds"]]
    assert rows == sorted(rows)
    assert rows[-1] == outcome["rows"]["halving"] == 90
    assert outcome["grid_requests"] == 16 * 90
    assert outcome["requests"] < 0.6 * outcome["grid_requests"]
    assert len(outcome["pipelines"]) == 16
    assert engine.closed == 1
    assert read_json(tmp_path / "optimise.json") == outcome


def test_its_figures_are_those_of_the_engine(task: Task, engine: Priced, tmp_path: Path) -> None:
    outcome = run_search(task, tmp_path, recipe=OWN)
    by_steps = {str(one["steps"]): one for one in outcome["pipelines"]}
    best, own = by_steps[str(OPTIMUM)], by_steps[str(OWN["steps"])]
    assert best["exact"] == pytest.approx(0.9, abs=0.1)
    assert best["exact_low"] < best["exact"] < best["exact_high"]
    assert best["n"] == own["n"] == 90
    assert own["key"] == outcome["present"]
    assert best["against_present"]["mean"] == pytest.approx(best["exact"] - own["exact"])
    assert best["against_present"]["low"] > 0
    assert best["front"]
    assert by_steps["['fill']"]["front"], "the cheapest is on the front, however poor"
    ten = by_steps[str([{"method": "retrieve", "examples": 10}, "fill"])]
    assert not ten["front"], "dearer and worse"
    assert best["dollars"] > own["dollars"] > 0
    fresh = outcome["fresh"]
    assert fresh["chosen"]["n"] == fresh["present"]["n"] == outcome["rows"]["fresh"] == 30
    assert fresh["against_present"]["mean"] == pytest.approx(fresh["chosen"]["exact"] - fresh["present"]["exact"])


def test_each_step_is_left_out_on_all_rows(task: Task, engine: Priced, tmp_path: Path) -> None:
    outcome = run_search(task, tmp_path, steps=[["fill", "check"]])
    worth = {line["step"]: line for line in outcome["worth"]}
    assert outcome["chosen"]["prototype"]["steps"] == [{"method": "retrieve", "examples": 6}, "fill", "check"]
    assert list(worth) == ["retrieve(examples=6)", "fill", "check"]
    assert all(line["n"] == VALID for line in worth.values())
    assert worth["retrieve(examples=6)"]["worth"]["low"] > 0.5
    assert worth["retrieve(examples=6)"]["adds_dollars"] > 0
    assert worth["check"]["worth"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert worth["check"]["adds_dollars"] == 0


def test_run_again_it_pays_for_nothing(task: Task, engine: Priced, tmp_path: Path) -> None:
    first = run_search(task, tmp_path, recipe=OWN, optional=["vote"])
    asked = len(engine.asked)
    assert first["spent"] == first["spent_in_all"]
    assert first["spent"]["calls"] == asked
    again = run_search(task, tmp_path, recipe=OWN, optional=["vote"])
    assert len(engine.asked) == asked
    assert again["spent"]["calls"] == 0
    assert again["spent_in_all"] == first["spent_in_all"]
    assert {**again, "spent": 0} == {**first, "spent": 0}, "seconds and dollars are what they once were"


def test_a_budget_is_never_crossed_and_more_goes_on(task: Task, engine: Priced, tmp_path: Path) -> None:
    whole = run_search(task, tmp_path / "whole", recipe=OWN)
    asked = len(engine.asked)
    limit = 0.5 * whole["spent"]["dollars"]
    part = run_search(task, tmp_path / "part", Budget(dollars=limit), recipe=OWN)
    assert 0 < part["spent"]["dollars"] <= limit
    assert "budget" in part["stopped"]
    assert part["chosen"]["n"] == part["rounds"][-1]["rows"]
    assert part["chosen"]["n"] < 90
    assert part["fresh"] is None
    stopped_at = len(engine.asked)
    rest = run_search(task, tmp_path / "part", recipe=OWN)
    assert rest["stopped"] == ""
    assert rest["chosen"]["prototype"]["steps"] == OPTIMUM
    assert len(engine.asked) - stopped_at == asked - (stopped_at - asked), "what was asked is not asked again"


def test_where_the_first_round_is_too_dear_nothing_is_chosen(task: Task, engine: Priced, tmp_path: Path) -> None:
    outcome = run_search(task, tmp_path, Budget(tokens=20_000))
    assert outcome["chosen"] is None
    assert "before every pipeline was measured once" in outcome["why_none"]
    assert 0 < outcome["spent"]["tokens"] <= 20_000
    assert outcome["untried"] > 0
    assert run_search(task, tmp_path, Budget(tokens=20_000))["spent"]["calls"] <= 1


def test_a_searchs_budget_counts_searches_and_the_recipes_counts_all(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for purpose, dollars in (("pipeline on valid", 2.0), ("optimise", 3.0)):
        engine = FakeEngine(price=Price(dollars_per_million_in=dollars * 1e5), name=purpose)
        ledger.wrap(engine, purpose).complete([Prompt(text="x")], Sampling())
    assert optimise._spending(ledger)["dollars"] == pytest.approx(3.0)
    assert optimise._within(Budget(), Budget(dollars=4.0), ledger) == Budget(dollars=pytest.approx(6.0))
    assert optimise._within(Budget(dollars=5.0), Budget(dollars=4.0), ledger) == Budget(dollars=5.0)
    assert optimise._within(Budget(tokens=7), Budget(), ledger) == Budget(tokens=7)
    ledger.close()


class Untouchable(tuple[Example, ...]):
    """A split that nobody may look at."""

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("test was touched")

    __iter__ = __len__ = __getitem__ = __contains__ = __bool__ = __eq__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def test_no_row_of_test_is_touched(engine: Priced, tmp_path: Path) -> None:
    task = small_task(valid=valid_rows())
    object.__setattr__(task, "test", Untouchable())
    with pytest.raises(AssertionError, match="touched"):
        len(task.test)
    outcome = run_search(task, tmp_path, wordings=["be careful"], selector="mutual_information")
    assert outcome["chosen"]
    known = {row.request.text for split in (task.labelled, task.unlabelled, task.valid) for row in split}
    said = {m["content"] for prompt, *_ in engine.asked for m in prompt.messages if m["role"] == "user"}
    assert said <= known


def test_too_few_rows_are_refused(engine: Priced, tmp_path: Path) -> None:
    task = small_task(valid=valid_rows()[:7])
    with pytest.raises(UserError, match="valid's 7 rows are too few"):
        run_search(task, tmp_path)
    with pytest.raises(UserError, match="5 of valid's 120 rows are too few"):
        run_search(small_task(valid=valid_rows()), tmp_path, rows=5)
    assert not engine.asked


def test_limits_and_tolerance_choose_a_cheaper_one(task: Task, engine: Priced, tmp_path: Path) -> None:
    free = run_search(task, tmp_path, recipe=OWN)
    dollars = {str(one["steps"]): one["dollars"] for one in free["pipelines"]}
    between = (dollars[str(OWN["steps"])] + dollars[str(OPTIMUM)]) / 2
    limited = run_search(task, tmp_path, recipe=OWN, dollars_at_most=between)
    assert limited["chosen"]["prototype"]["steps"] == OWN["steps"]
    assert limited["chosen"]["is_present"]
    impossible = run_search(task, tmp_path, recipe=OWN, dollars_at_most=1e-9)
    assert impossible["chosen"] is None
    assert "no pipeline of the last round keeps to 1e-09 dollars a request" in impossible["why_none"]
    tolerant = run_search(task, tmp_path, recipe=OWN, tolerance=0.6)
    assert tolerant["chosen"]["dollars"] < dollars[str(OPTIMUM)]


def test_several_engines_are_open_one_at_a_time(task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    events: list[str] = []

    class Watched(Priced):
        def close(self) -> None:
            events.append(f"close {self.name}")

    def opened(settings: Settings) -> Priced:
        events.append(f"open {settings.engine['model']}")
        return Watched(settings.engine["model"])

    monkeypatch.setattr(optimise, "open_engine", opened)
    small, large = "smollm2-135m-instruct-q4_1", "qwen2.5-coder-1.5b-instruct-q4_k_m"
    engines = [{"method": "torch", "model": name} for name in (small, large)]
    outcome = run_search(task, tmp_path, recipe={"engine": engines[0]}, engines=engines, examples=[3, 6])
    assert set(events) == {f"{act} {name}" for act in ("open", "close") for name in (small, large)}
    assert all(b == a.replace("open", "close") for a, b in zip(events[::2], events[1::2], strict=True))
    assert outcome["chosen"]["prototype"]["engine"]["model"] in (small, large)
    assert {one["name"] for one in outcome["pipelines"]} >= {
        f"retrieve(examples=6) + fill ({small})",
        f"retrieve(examples=6) + fill ({large})",
    }


def test_a_selector_ranks_wordings_without_labels(task: Task, engine: Priced, tmp_path: Path) -> None:
    said = {"wordings": ["guess", "be careful"], "selector": "mutual_information", "wordings_kept": 1, "examples": [6]}
    outcome = run_search(task, tmp_path, **said)
    tried = {one["wording"] for one in outcome["pipelines"]}
    assert tried == {"", "be careful"}, "the recipe's own is always measured"
    assert [one["steps"] for one in outcome["pipelines"] if not one["wording"]] == [["retrieve", "fill"]]
    assert engine.scored == 3 * 12 * 3
    assert outcome["chosen"]["prototype"].get("wording", "") in tried
    asked = {m["content"].split("\n")[0] for prompt, *_ in engine.asked for m in prompt.messages[:1]}
    assert asked == {"be careful", task.description}
    assert run_search(task, tmp_path, **said)["spent"]["calls"] == 0
    assert engine.scored == 3 * 12 * 3, "scores are kept in the ledger too"


def test_a_selector_needs_two_functions(engine: Priced, tmp_path: Path) -> None:
    labelled = [example("turn it on", [Call("TurnOn", {"area": "Hall"})], "one")]
    task = small_task(valid=valid_rows(), labelled=labelled)
    with pytest.raises(UserError, match="the labelled rows call 1 functions, and two are needed"):
        run_search(task, tmp_path, wordings=["x"], selector="first")


def test_a_pipeline_that_cannot_run_is_named(task: Task, engine: Priced, tmp_path: Path) -> None:
    def refuse(*_: Any) -> str:
        raise UserError("the server is not there", "start it")

    engine.author = refuse
    with pytest.raises(UserError, match=r"^fill: the server is not there \(start it\)$"):
        run_search(task, tmp_path, recipe={"steps": ["fill"]}, examples=[0])
    assert engine.closed == 1


def test_what_an_engine_cannot_do_is_told_before_anything_is_asked(task: Task, engine: Priced, tmp_path: Path) -> None:
    hosted = {"method": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1"}
    route = {"method": "route", "by": "logprob"}
    with pytest.raises(UserErrors) as told:
        run_search(task, tmp_path, recipe={"engine": hosted, "steps": ["fill"]}, steps=[[route, "fill"]], examples=[0])
    assert "route(by=logprob) + fill" in str(told.value)
    assert "token_scores" in str(told.value)
    assert not engine.asked
