"""The arms of transfer_quality are comparable; its tables are chosen from, its memory is watched."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _teachers
from benchmarks._arms import BY_NAME, Place, cell_of
from benchmarks._pupils import PeakMemory, place_of
from benchmarks._teachers import Taught
from benchmarks.transfer_quality import parser, run
from supertiny.core.errors import UserError
from supertiny.core.progress import Progress
from supertiny.core.records import Answer, Call, Example
from tests.small_task import examples, small_task


def place(folder: Path, seeds: list[int], quick: bool = False) -> Place:
    """A third of the pool's answers is refused by the verifier."""
    task = small_task(labelled=examples("labelled", 6), valid=examples("valid", 8))
    rows = [row for row in examples("unlabelled") if row.answer is not None]
    for number in range(0, len(rows), 3):
        answer = Answer((Call("Fly", {}),))
        rows[number] = Example(rows[number].request, answer, task.verify(rows[number].request, answer.calls))
    return Place(task, Taught(tuple(rows)), seeds, folder, "student", quick, Progress(quiet=True))


def test_fewer_verified_lessons_are_seen_more_often(tmp_path: Path) -> None:
    here = place(tmp_path, [1])
    counts = {name: len(here.rows(name)) for name in ("unverified", "verified")}
    assert counts["verified"] < counts["unverified"]
    seen = {name: here.learner_of(BY_NAME[name])["passes"] * count for name, count in counts.items()}
    assert abs(seen["verified"] - seen["unverified"]) <= counts["verified"] / 2
    assert cell_of(here, BY_NAME["verified"], 1).learner == here.learner_of(BY_NAME["verified"])


def test_substituted_lessons_are_verified_ones_and_others_made_of_them(tmp_path: Path) -> None:
    here = place(tmp_path, [1])
    verified, found = here.rows("verified"), here.rows("substituted")
    assert found[: len(verified)] == verified
    made = found[len(verified) :]
    assert {row.provenance["made_by"] for row in made} == {"substitute"}
    assert all(row.verdict is not None and row.verdict.outcome != "fail" for row in made)
    asked_later = {row.request.text for row in (*here.task.valid, *here.task.test)}
    assert not asked_later & {row.request.text for row in made}
    assert here.rows("substituted") == found


def test_a_committee_has_two_members_at_least(tmp_path: Path) -> None:
    for arm in ("distil", "hybrid"):
        alone = cell_of(place(tmp_path, [5]), BY_NAME[arm], 5)
        assert len(set(alone.teachers)) == 2
        verified = BY_NAME["verified"]
        assert alone.start in alone.teachers
        assert alone.teachers[1] == place_of(cell_of(place(tmp_path, [5]), verified, 6), tmp_path)
        several = cell_of(place(tmp_path, [1, 2, 3]), BY_NAME[arm], 1)
        assert len(set(several.teachers)) == 3
    assert replace(place(tmp_path, [5]), quick=True).committee == [5]


def test_the_teachers_model_runs_on_the_engine_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []

    class Known:
        def open(self) -> Any:
            return _teachers._Nobody()

    def build(family: str, block: Any) -> Known:
        built.append((family, block))
        return Known()

    monkeypatch.setattr(_teachers, "build", build)
    options = parser().parse_args(["--engine", "llama_cpp"])
    with _teachers._room(options.teacher, options.engine, tmp_path, Progress(quiet=True)):
        assert built == [("engines", {"method": "llama_cpp", "model": _teachers.MODEL})]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--part", "adapters", "--methods", "lorra"], "'lorra' in adapters.*'lora'"),
        (["--part", "adapters", "--methods", "forward_kl"], "no method 'forward_kl' in adapters"),
        (["--part", "arms", "--methods", "lora"], "neither is asked for"),
    ],
)
def test_methods_that_no_table_has_are_told_before_anything_is_taught(given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(parser().parse_args(given))


def test_peak_memory_is_what_was_taken_while_it_watched() -> None:
    peak = PeakMemory(torch.device("cpu"))
    with peak:
        pass
    before = peak.bytes
    with peak:
        kept, until = torch.ones(25_000_000), time.monotonic() + 30
        while peak.bytes - before <= 50e6 and time.monotonic() < until:
            assert kept[0] == 1
    assert peak.bytes - before > 50e6
