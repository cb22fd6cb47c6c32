"""The search on a tiny student: points that can be served, a front, a budget that is kept or told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supertiny.compress import search as searching
from supertiny.compress.budget import Budget
from supertiny.compress.examining import Room
from supertiny.compress.gate import Sitting
from supertiny.compress.plans import Plan, Shape
from supertiny.compress.plans import plans as planned
from supertiny.compress.search import FOLDER, point_folders, search
from supertiny.core.artifact import Artifact
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, sha256_of, write_json
from supertiny.core.run import Run
from supertiny.core.student import Student
from supertiny.report.stage import search_of_student
from tests.small_run import Gate, settings


def searched(run: Run, budget: str = "", count: int = 2, **more: Any) -> dict[str, Any]:
    return search(settings(), run, Budget.read(budget) if budget else Budget(), count, **more)


def test_each_point_is_an_artifact_and_the_best_within_the_budget_is_chosen(run: Run, gate: Gate) -> None:
    whole = Student.open(run.folder / "transfer" / "student")
    outcome = searched(run, "bytes<=1MB, p50<=1s, drop<=1pt", 3)
    assert read_json(run.folder / FOLDER / "search.json") == outcome
    points = {point["name"]: point for point in outcome["points"]}
    assert {"q8_0", "q4_0"} < set(points)
    assert 3 <= len(points) <= 5
    places = point_folders(run.folder / FOLDER, outcome)
    for name, place in places.items():
        artifact = Artifact.open(place / "compress" / "artifact")
        assert (artifact.bytes, artifact.type) == (points[name]["bytes"], points[name]["type"])
        assert sorted(path.name for path in (place / "compress").iterdir()) == ["artifact", "steps.json"]
        assert points[name]["meets"]
        assert points[name]["drop"] == 0
    assert min(point["parameters"] for point in points.values()) < whole.parameters
    # All are as exact in this fake: the smallest is the best.
    assert points[outcome["chosen"]]["bytes"] == min(point["bytes"] for point in points.values())
    assert outcome["nearest"] is None
    assert any(point["on_front"] for point in points.values())
    assert whole.parameters == outcome["student"]["parameters"]


def test_no_request_is_put_to_the_student_twice(run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def sit(room: Room, engine: Any, paper: Any, probes: Any) -> Sitting:
        asked.append(1)
        return Sitting((1.0,) * 4)

    monkeypatch.setattr(Room, "sit", sit)
    outcome = searched(run, count=0)
    assert len(asked) == 1 + len(outcome["points"])


def test_what_was_measured_is_not_measured_again(run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    first = searched(run, "bytes<=1MB")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was done before")

    monkeypatch.setattr(searching, "explore", never)
    monkeypatch.setattr(searching.Sensitivity, "measured", never)
    again = searched(run, "bytes<=1MB")
    assert again == first
    other = searched(run, "bytes<=2MB", count=0)
    assert {point["name"] for point in other["points"]} == {point["name"] for point in first["points"]}


@pytest.mark.parametrize(
    ("more", "told"),
    [({}, True), ({"quantization_aware": False}, False), ({"recovery": None}, False)],
)
def test_plans_know_whether_the_recovery_trains_on_the_grid(
    run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], told: bool
) -> None:
    seen: list[bool] = []

    def noted(shape: Shape, found: Any, on_grid: bool) -> list[Plan]:
        seen.append(on_grid)
        return planned(shape, found)

    monkeypatch.setattr(searching, "plans", noted)
    search(settings(**more), run, Budget(), 0)
    assert seen == [told]


def test_another_student_begins_anew(run: Run, gate: Gate) -> None:
    searched(run, count=0)
    write_json(run.folder / FOLDER / "key.json", "of another")
    stale = run.folder / FOLDER / "points" / "stale"
    stale.mkdir()
    searched(run, count=0)
    assert not stale.exists()


def test_files_that_the_recovery_names_are_part_of_the_key(run: Run, tmp_path: Path) -> None:
    def key(**more: Any) -> str:
        return searching._Search(settings(**more), run, Budget()).key

    (tmp_path / "amateur").mkdir()
    keys = set()
    for content in ("one", "two"):
        (tmp_path / "amateur" / "model.safetensors").write_text(content, encoding="utf-8")
        keys.add(key(recovery={"method": "contrast", "amateur": str(tmp_path / "amateur")}))
    assert len(keys) == 2


def test_a_budget_that_no_plan_keeps_is_told_with_the_nearest_before_anything_is_run(
    run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "explore", lambda *_: pytest.fail("nothing may be run"))
    with pytest.raises(UserError, match=r"no plan keeps the budget bytes<=1kB; the nearest is \S*q4_0.*: bytes about"):
        searched(run, "bytes<=1kB")


def test_a_latency_that_no_plan_is_expected_to_keep_is_told(run: Run, gate: Gate) -> None:
    with pytest.raises(UserError, match=r"p50<=1ms; the nearest is .*p50 about \d"):
        searched(run, "p50<=1ms")


def test_a_point_that_keeps_the_budget_but_broke_something_is_not_chosen(
    run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def sit(room: Room, engine: Any, paper: Any, probes: Any) -> Sitting:
        seen.append(1)
        return Sitting((1.0,) * 4 if len(seen) == 1 else (0.0,) * 4)

    monkeypatch.setattr(Room, "sit", sit)
    outcome = searched(run, "bytes<=1MB", count=0)
    assert outcome["chosen"] is None
    assert outcome["nearest"] in {"q8_0", "q4_0"}
    assert all(point["meets"] and not point["promoted"] for point in outcome["points"])


def test_a_plan_that_cannot_be_had_is_told_and_the_search_goes_on(
    run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    impossible = Plan("impossible", ({"method": "drop_blocks", "blocks": 9}, "gguf"), 0.0, 10, 10.0, "q4_0", 10)
    monkeypatch.setattr(searching, "plans", lambda shape, found, on_grid: [impossible])
    outcome = searched(run)
    (failed,) = (point for point in outcome["points"] if "failed" in point)
    assert "cannot drop 9 of 2 blocks" in failed["failed"]
    assert outcome["chosen"] in {"q8_0", "q4_0"}
    assert "impossible" not in point_folders(run.folder / FOLDER, outcome)


def test_a_plan_that_failed_is_tried_again(run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    done = searching.explore

    def failing(*arguments: Any) -> dict[str, Any]:
        if arguments[2].parent.name == "q4_0":
            raise UserError("no room is left")
        return done(*arguments)

    monkeypatch.setattr(searching, "explore", failing)
    points = {point["name"]: point for point in searched(run, count=0)["points"]}
    assert points["q4_0"]["failed"] == "no room is left"
    monkeypatch.setattr(searching, "explore", done)
    points = {point["name"]: point for point in searched(run, count=0)["points"]}
    assert "failed" not in points["q4_0"]


def test_where_the_student_cannot_be_measured_its_error_is_told(
    run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> dict[str, Any]:
        raise UserError("no engine opens it")

    monkeypatch.setattr(searching, "explore", failing)
    with pytest.raises(UserError, match="no engine opens it"):
        searched(run, count=0)


def test_what_a_killed_wipe_left_is_wiped(run: Run, gate: Gate) -> None:
    searched(run, count=0)
    (run.folder / FOLDER / "key.json").unlink()
    stale = run.folder / FOLDER / "points" / "stale"
    stale.mkdir()
    searched(run, count=0)
    assert not stale.exists()


def test_a_report_shows_no_search_of_another_student(run: Run) -> None:
    student = run.folder / "transfer" / "student"
    own = [sha256_of(path) for path in sorted(student.glob("*.safetensors"))]
    for known, shown in ((own, True), (["of another"], False)):
        write_json(run.folder / FOLDER / "search.json", {"student_sha256": known, "points": []})
        assert (search_of_student(run.folder) is not None) is shown


def test_after_its_minutes_no_further_plan_is_begun(run: Run, gate: Gate) -> None:
    outcome = searched(run, count=5, minutes=0.0)
    assert {point["name"] for point in outcome["points"]} == {"q8_0", "q4_0"}


def test_points_of_a_killed_search_are_kept(run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    done = searching.explore
    calls: list[Path] = []

    def killed(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done(*arguments)

    monkeypatch.setattr(searching, "explore", killed)
    with pytest.raises(KeyboardInterrupt):
        searched(run, count=0)
    searched(run, count=0)
    assert [place.parent.name for place in calls] == ["q8_0", "q4_0", "q4_0"]
