"""The selection benchmark without training: pools, choices, cells that are done once, and what is made of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _selecting, data_selection
from benchmarks._selecting import (
    RANDOM,
    REPEATED_SHARE,
    block_of,
    chosen,
    curator_bench,
    selecting_curators,
    skewed,
    task_with_pool,
)
from benchmarks.data_selection import cell, differences, parser, pool_files, summarised
from supertiny.core.errors import UserError
from supertiny.core.ledger import Ledger
from supertiny.core.progress import Progress
from supertiny.core.records import Call, Example
from tests.small_task import example, examples, small_task


def pool(count: int = 60) -> list[Example]:
    tools = ("TurnOn", "TurnOff", "Dim")
    return [
        example(f"request number {place}", [Call(tools[place % 3], {"area": "Hall"})], f"row-{place}", source="pool")
        for place in range(count)
    ]


def test_curators_that_need_a_teacher_or_a_person_are_left_out() -> None:
    names = selecting_curators()
    assert {"balance", "deduplicate", "verified"} <= set(names)
    assert not {"expand", "refine", "disagreement"} & set(names)
    assert selecting_curators(["balance"]) == ["balance"]
    with pytest.raises(UserError, match="balance"):
        selecting_curators(["balanse"])


def test_curators_are_told_the_number_of_rows_where_they_take_one() -> None:
    assert block_of("balance", 40) == {"method": "balance", "rows": 40}
    assert block_of("deduplicate", 40) == {"method": "deduplicate"}


def test_choices_differ_by_what_a_curator_leaves_out_alone() -> None:
    rows, task = pool(), small_task()
    at_random = chosen(RANDOM, rows, task, seed=1, rows=20)
    assert len(at_random) == 20
    assert chosen(RANDOM, rows, task, seed=1, rows=20) == at_random
    assert chosen(RANDOM, rows, task, seed=2, rows=20) != at_random
    assert chosen("verified", rows, task, seed=1, rows=20) == []  # nobody has verified them
    assert chosen("leak_guard", rows, task, seed=1, rows=20) == at_random
    uneven = rows[:30] + [row for row in rows[30:] if row.answer and row.answer.calls[0].tool == "Dim"]
    evened = chosen("balance", uneven, task, seed=1, rows=12)
    assert Counter(row.answer.calls[0].tool for row in evened if row.answer) == {"TurnOn": 4, "TurnOff": 4, "Dim": 4}


def test_a_skewed_pool_repeats_itself() -> None:
    rows = skewed(pool(240), seed=1)
    assert skewed(pool(240), seed=1) == rows
    assert len(rows) == 120
    assert len({row.request.id for row in rows}) == 120
    counts = Counter(row.request.text for row in rows)
    assert sum(counts.values()) - len(counts) == round(120 * REPEATED_SHARE)
    shares = sorted(Counter(row.answer.calls[0].tool for row in rows if row.answer).values())
    assert shares[-1] > 2 * shares[0]


def test_a_teachers_pool_takes_the_place_of_gold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = {row.request.id: (Call("TurnOn", {"area": "Hall"}),) for row in examples("unlabelled")}
    home = replace(small_task(), pool_gold=gold)
    monkeypatch.setattr(_selecting, "load_task", lambda folder: home)
    rows = [row.to_json() for row in pool(3)]
    rows[0]["answer"]["readable"] = False
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [row.request.id for row in task_with_pool("smart_home", None, 7, tmp_path / "pool.jsonl")[1]] == [
        "row-1",
        "row-2",
    ]
    found = task_with_pool("smart_home", None, 7)[1]
    assert [row.request.id for row in found] == [row.request.id for row in home.unlabelled]
    assert all(row.verdict is not None and row.verdict.outcome == "pass" for row in found)
    assert {row.provenance["source"] for row in found} == {"pool"}


def test_a_pool_file_is_named_by_its_task() -> None:
    assert pool_files(["snips=a/b"]) == {"snips": Path("a/b")}
    with pytest.raises(UserError, match="TASK=FILE"):
        pool_files(["bfcl=a"])


def test_a_curator_is_handed_scores_and_no_teacher(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with curator_bench(small_task(), ledger, tmp_path, seed=1) as bench:
        with pytest.raises(AssertionError):
            bench.answer([])
    ledger.close()


def test_equal_rows_are_trained_on_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []

    def train(task: Any, rows: Any, valid: Any, seed: int, progress: Any) -> list[bool]:
        trained.append(len(rows))
        return [True] * len(valid)

    monkeypatch.setattr(data_selection, "trained_and_measured", train)
    task, rows, quiet = small_task(), pool(6), Progress(quiet=True)
    valid = task.valid[:4]
    first = cell(tmp_path, task, rows, valid, 1, quiet)
    assert cell(tmp_path, task, rows, valid, 1, quiet) == first
    assert trained == [6]
    cell(tmp_path, task, rows[:5], valid, 1, quiet)
    cell(tmp_path, task, rows, valid, 2, quiet)
    assert trained == [6, 5, 6]


def test_one_figure_a_curator() -> None:
    def done(*hits: int) -> dict[str, Any]:
        return {"hits": [bool(hit) for hit in hits], "rows": 400, "seconds": 1.0}

    cells = {
        ("snips", RANDOM, 1): done(0, 0, 1, 1), ("snips", RANDOM, 2): done(0, 0, 1, 0),
        ("snips", "balance", 1): done(1, 0, 1, 1), ("snips", "balance", 2): done(1, 0, 1, 1),
        ("smart_home", RANDOM, 1): done(1, 1), ("smart_home", RANDOM, 2): done(1, 1),
        ("smart_home", "balance", 1): done(1, 0), ("smart_home", "balance", 2): done(1, 0),
    }  # fmt: skip
    assert differences(cells, "snips", "balance", [1, 2]) == [1.0, 0.0, 0.0, 0.5]
    figures, table = summarised(cells)
    values = {name: value for name, _, value in figures}
    assert values["balance_snips"] == pytest.approx(0.375)
    assert values["balance_smart_home"] == pytest.approx(-0.5)
    assert values["balance"] == pytest.approx((1.5 - 1.0) / 6)
    assert values["balance_low"] <= values["balance"] <= values["balance_high"]
    assert values["balance_n"] == 6
    assert values["snips_random_exact"] == pytest.approx(3 / 8)
    assert [(line["task"], line["curator"]) for line in table] == [
        ("snips", RANDOM), ("smart_home", RANDOM), ("snips", "balance"), ("smart_home", "balance"),
    ]  # fmt: skip


def test_the_command_line_takes_tasks_curators_and_seeds() -> None:
    chosen = parser().parse_args(["--task", "snips", "--curators", "balance", "--seeds", "4", "5"])
    assert (chosen.task, chosen.curators, chosen.seeds, chosen.rows) == (["snips"], ["balance"], [4, 5], 400)
