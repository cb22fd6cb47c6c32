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
    REPEATED_SHARE,
    asks_somebody,
    block_of,
    chosen,
    curator_bench,
    drawn,
    known_curators,
    skewed,
    task_with_pool,
)
from benchmarks.data_selection import RANDOM, by_task, cell, differences, parser, picks, pool_of, summarised
from supertiny.core.errors import UserError
from supertiny.core.ledger import Ledger
from supertiny.core.progress import Progress
from supertiny.core.records import Answer, Call, Example
from tests.small_task import example, examples, small_task


def pool(count: int = 60) -> list[Example]:
    tools = ("TurnOn", "TurnOff", "Dim")
    return [
        example(f"request number {place}", [Call(tools[place % 3], {"area": "Hall"})], f"row-{place}", source="pool")
        for place in range(count)
    ]


def test_curators_are_known_and_those_that_ask_somebody_are_told_apart() -> None:
    assert {name for name in known_curators() if asks_somebody(name)} == {"expand", "refine", "disagreement"}
    assert known_curators(["balance"]) == ["balance"]
    with pytest.raises(UserError, match="balance"):
        known_curators(["balanse"])


def test_curators_are_told_the_number_of_rows_where_they_take_one() -> None:
    assert block_of("balance", 40) == {"method": "balance", "rows": 40}
    assert block_of("deduplicate", 40) == {"method": "deduplicate"}


def test_choices_differ_by_what_a_curator_leaves_out_alone() -> None:
    rows, task = pool(), small_task()
    at_random = drawn(rows, 1, 20)
    assert len(at_random) == 20
    assert drawn(rows, 1, 20) == at_random
    assert drawn(rows, 2, 20) != at_random
    assert chosen("verified", rows, task, seed=1, rows=20) == []  # nobody has verified them
    assert chosen("leak_guard", rows, task, seed=1, rows=20) == at_random
    uneven = rows[:30] + [row for row in rows[30:] if row.answer and row.answer.calls[0].tool == "Dim"]
    evened = chosen("balance", uneven, task, seed=1, rows=12)
    assert Counter(row.answer.calls[0].tool for row in evened if row.answer) == {"TurnOn": 4, "TurnOff": 4, "Dim": 4}


def test_random_rows_are_as_many_as_the_curator_chose(tmp_path: Path) -> None:
    rows, task = pool(), small_task()
    same = [replace(row, request=replace(row.request, id=f"{row.request.id}/again")) for row in rows[:20]]
    ledger = Ledger(tmp_path / "ledger.sqlite")
    names = ["deduplicate", "leak_guard", "verified", "expand"]
    found, why_not = picks(names, [*rows[:10], *same], task, [1, 2], 25, ledger, tmp_path, None)
    assert {key: (len(pick.rows), len(pick.random)) for key, pick in found.items()} == {
        ("deduplicate", 1): (20, 20),
        ("deduplicate", 2): (20, 20),
    }
    assert why_not["leak_guard"] == "same rows as random"
    assert why_not["verified"] == "it leaves no row"
    assert why_not["expand"].endswith("no finished run was given (--run)")
    ledger.close()


def test_rows_of_a_finished_run_are_held_against_those_without_the_curators(tmp_path: Path) -> None:
    old = [row.to_json() for row in pool(30)]
    made = [{**row, "id": f"{row['id']}/new", "provenance": {"source": "expand", "made_by": "expand"}} for row in old]
    gold = [{**old[0], "id": "gold", "provenance": {"source": "labelled"}}]
    made[0]["messages"] = [{"role": "user", "content": "in other words"}]
    (tmp_path / "prototype").mkdir()
    lines = "\n".join(map(json.dumps, [*gold, *old, *made]))
    (tmp_path / "prototype" / "train.jsonl").write_text(lines, encoding="utf-8")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    found, why_not = picks(["expand", "refine"], pool(), small_task(), [1], 20, ledger, tmp_path, tmp_path)
    ledger.close()
    pick = found["expand", 1]
    assert (len(pick.rows), len(pick.random)) == (20, 20)
    assert any(row.provenance.get("made_by") == "expand" for row in pick.rows)
    assert not any(row.provenance.get("made_by") == "expand" for row in pick.random)
    assert why_not == {"refine": "same rows as random"}
    with pytest.raises(UserError, match="no prototype/train.jsonl"):
        picks(["expand"], pool(), small_task(), [1], 20, ledger, tmp_path, tmp_path / "nowhere")


def test_a_pool_that_leaves_no_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_selection, "task_with_pool", lambda *given: (small_task(), pool(60)))
    assert len(pool_of("snips", parser().parse_args([]), 30)[1]) == 60
    with pytest.raises(UserError, match=r"snips: 60 rows to choose 31 from \(--rows 30"):
        pool_of("snips", parser().parse_args([]), 31)
    with pytest.raises(UserError, match="30 rows to choose 30 from when skewed"):
        pool_of("snips", parser().parse_args(["--skewed"]), 30)


def test_a_skewed_pool_repeats_itself() -> None:
    rows = skewed(pool(240), seed=1)
    assert skewed(pool(240), seed=1) == rows
    assert len(rows) == 120
    assert len({row.request.id for row in rows}) == 120
    counts = Counter(row.request.text for row in rows)
    assert sum(counts.values()) - len(counts) == round(120 * REPEATED_SHARE)
    shares = sorted(Counter(row.answer.calls[0].tool for row in rows if row.answer).values())
    assert shares[-1] > 2 * shares[0]


def test_small_groups_are_not_made_up_for_by_repeats() -> None:
    """The third function has three rows of its third of the first one's: all have fewer."""
    rare = [row for row in pool(240) if row.answer and row.answer.calls[0].tool == "Dim"][:3]
    rows = skewed([row for row in pool(240) if row.answer and row.answer.calls[0].tool != "Dim"] + rare, seed=1)
    counts = Counter(row.request.text for row in rows)
    assert sum(counts.values()) - len(counts) == pytest.approx(len(rows) * REPEATED_SHARE, abs=1)
    assert len({row.request.text for row in rows if row.answer and row.answer.calls[0].tool == "TurnOn"}) == 9


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
    assert by_task("--pool", ["snips=a/b"]) == {"snips": Path("a/b")}
    with pytest.raises(UserError, match="--pool bfcl=a: must be TASK=PATH"):
        by_task("--pool", ["bfcl=a"])


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
    worded = [replace(row, answer=replace(row.answer or Answer(), text="With pleasure!")) for row in rows]
    cell(tmp_path, task, worded, valid, 1, quiet)
    assert trained == [6, 5, 6, 6], "the words that a student learns are part of it"


def test_one_figure_a_curator() -> None:
    def done(hits: str, beside: str) -> dict[str, Any]:
        own, others = ([mark == "1" for mark in marks] for marks in (hits, beside))
        return {"hits": own, "random_hits": others, "rows": 400, "seconds": 1.0}

    cells = {
        ("snips", "balance", 1): done("1011", "0011"), ("snips", "balance", 2): done("1011", "0010"),
        ("smart_home", "balance", 1): done("10", "11"), ("smart_home", "balance", 2): done("10", "11"),
        ("snips", "word_noise", 1): done("0011", "0011"), ("snips", "word_noise", 2): done("0011", "0010"),
    }  # fmt: skip
    assert differences(cells, "snips", "balance", [1, 2]) == [1.0, 0.0, 0.0, 0.5]
    figures, table = summarised(cells)
    values = {name: value for name, _, value in figures}
    assert values["balance_snips"] == pytest.approx(0.375)
    assert values["balance_smart_home"] == pytest.approx(-0.5)
    assert values["balance"] == pytest.approx((1.5 - 1.0) / 6)
    assert values["balance_low"] <= values["balance"] <= values["balance_high"]
    assert (values["balance_n"], values["word_noise_n"]) == (6, 4)
    assert "word_noise_smart_home" not in values
    assert [(line["task"], line["curator"]) for line in table] == [
        (task, line)
        for task, name in (("snips", "balance"), ("smart_home", "balance"), ("snips", "word_noise"))
        for line in (f"{RANDOM}, for {name}", name)
    ]


def test_seeds_that_answer_the_same_rows_do_not_narrow_the_interval() -> None:
    marks = {"hits": [True, False] * 20, "random_hits": [True] * 40, "rows": 40, "seconds": 1.0}
    widths = []
    for seeds in (1, 8):
        _, (_, line) = summarised({("snips", "balance", seed): marks for seed in range(seeds)})
        widths.append(line["exact_high"] - line["exact_low"])
    assert widths[0] == pytest.approx(widths[1])
    assert widths[0] > 0.2


def test_the_command_line_takes_tasks_curators_and_seeds() -> None:
    chosen = parser().parse_args(["--task", "snips", "--curators", "balance", "--seeds", "4", "5"])
    assert (chosen.task, chosen.curators, chosen.seeds, chosen.rows) == (["snips"], ["balance"], [4, 5], 400)
