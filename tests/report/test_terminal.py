"""Tables in the terminal, the verdict, and Markdown."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from supertiny.report.markdown import markdown
from supertiny.report.terminal import compare, print_table
from supertiny.report.verdict import sureness, verdict


def entry(name: str, exact: float, p50: float, price: float, size: int = 0) -> dict[str, Any]:
    return {
        "name": name,
        "exact": exact,
        "exact_low": exact - 0.04,
        "exact_high": exact + 0.04,
        "n": 400,
        "argument_f1": 0.9,
        "p50_seconds": p50,
        "p95_seconds": 2 * p50,
        "bytes": size,
        "tokens_in": 2060.0,
        "tokens_out": 46.0,
        "dollars_per_1000": price,
    }


def report_of(*entries: dict[str, Any], task: str = "t") -> dict[str, Any]:
    pair = {
        "left": "artifact",
        "right": "pipeline",
        "metric": "exact",
        "mean": 0.0,
        "low": -0.012,
        "high": 0.031,
        "n": 400,
    }
    report: dict[str, Any] = {
        "answerers": list(entries),
        "rows": "rows.jsonl",
        "differences": [pair],
        "hashes": {"task": task},
        "task": {"name": "home"},
        "costs": {"dollars_per_hour": 0.1, "items": [], "one_off_dollars": 0.08, "one_off_seconds": 100.0},
        "learners": [
            {"student": "labelled_only", "learner": "imitate", "lessons": 200, "before": None, "valid_exact": 0.4}
            | {"low": 0.33, "high": 0.47, "n": 200, "seconds": 30.0, "tokens": 9_000},
            {"student": "student", "learner": "reinforce", "lessons": 700, "before": 0.6, "valid_exact": 0.64}
            | {"low": 0.57, "high": 0.7, "n": 200, "seconds": 200.0, "tokens": 50_000},
        ],
        "step_prices": [
            {"name": "fill", "calls": 1.0, "tokens_in": 900.0, "tokens_out": 40.0, "seconds": 0.5, "dollars": 0.002}
        ],
        "break_even": {"requests": 2400.0},
        "prompt_saving": None,
        "machine": {},
        "seed": 7,
    }
    return {**report, "verdict": verdict(report)}


PIPELINE = entry("pipeline", 0.74, 1.2, 0.033, 986_000_000)
ARTIFACT = entry("artifact", 0.75, 0.04, 0.0008, 52_000_000)


def printed(width: int, thing: Any, report: dict[str, Any] | None = None) -> str:
    console = Console(file=StringIO(), width=width)
    print_table(report, console) if report is not None else console.print(thing)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_verdict_is_one_sentence_with_its_interval() -> None:
    said = report_of(PIPELINE, ARTIFACT)["verdict"]
    assert (
        said == "The artifact is 1.0 point above the pipeline (95 %: −1.2 to +3.1), 30× faster, 41× cheaper, 52.0 MB."
    )


def test_the_verdict_does_not_hide_what_is_worse() -> None:
    worse = entry("artifact", 0.70, 2.4, 0.066)
    said = report_of(PIPELINE, worse)["verdict"]
    assert "4.0 points below the pipeline" in said
    assert "2.0× slower" in said
    assert "2.0× dearer" in said


def test_without_a_pipeline_the_verdict_names_the_best() -> None:
    assert (
        verdict({"answerers": [ARTIFACT], "differences": []}) == "Artifact is the most exact: 75.0 % of 400 test rows."
    )


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "no clear")]
)
def test_an_interval_over_zero_says_nothing(low: float, high: float, word: str) -> None:
    assert word in sureness(low, high)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_number_is_cut_off_whatever_the_width(width: int) -> None:
    text = printed(width, None, report_of(PIPELINE, ARTIFACT))
    assert "…" not in text
    for shown in (
        "pipeline",
        "74.0",
        "70.0–78.0",
        "400",
        "0.900",
        "1.20 s",
        "2.40 s",
        "2,060",
        "46",
        "986 MB",
        "$0.033",
    ):
        assert shown in text
    assert all(len(line) <= width for line in text.splitlines())


def test_compare_shows_both_and_the_change() -> None:
    better = entry("artifact", 0.90, 0.02, 0.0004, 26_000_000)
    text = printed(140, compare(report_of(PIPELINE, ARTIFACT), report_of(better), ("runs/a", "runs/b")))
    assert "runs/a → runs/b" in text
    assert "75.0 → 90.0" in text
    assert "+15.0 (+9.3 to +20.7)" in text
    assert "52.0 MB → 26.0 MB" in text
    assert "74.0 → –" in text
    assert "different tasks" not in text


def test_compare_warns_where_tasks_differ() -> None:
    assert "different tasks" in printed(140, compare(report_of(ARTIFACT), report_of(ARTIFACT, task="other")))


def test_markdown_has_the_main_table_and_the_money() -> None:
    text = markdown(report_of(PIPELINE, ARTIFACT))
    assert (
        "| Artifact | 75.0 % | 71.0–79.0 | 400 | 0.900 | 40.0 ms | 80.0 ms | 2,060 | 46 | 52.0 MB | $0.00080 |" in text
    )
    assert "earned back after 2,400 requests" in text
    assert "| fill | 1.00 | 900 | 40 | 500 ms | $2.00 |" in text
    assert "| reinforce | 700 | 60.0 % | 64.0 % | 57.0–70.0 | +4.0 | 50,000 | 3.3 min |" in text
    assert "| imitate (Student, labels only) | 200 | – | 40.0 % |" in text
    assert "| Artifact − Teacher pipeline | 0.0 | −1.2 to +3.1 | no clear difference |" in text
