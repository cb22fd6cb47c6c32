"""What the report shows of a compress search and of the promotion gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supertiny.core.files import read_json, write_json
from supertiny.report import front
from supertiny.report.settings import Settings
from supertiny.report.stage import run
from tests.report.fakes import FakeAnswerer


def point(name: str, exact: float, size: int, **more: Any) -> dict[str, Any]:
    known = {"name": name, "exact": exact, "low": exact - 0.05, "high": min(1.0, exact + 0.05), "bytes": size, "n": 200}
    known |= {"p50_seconds": size / 4e9, "parameters": size * 2, "over": {}, "gate": {"broke": []}, "on_front": True}
    return known | more


def outcome(chosen: str | None = "q8_0") -> dict[str, Any]:
    broke = {"gate": {"broke": ["typos went from 90.0 to 60.0 %"]}, "on_front": False}
    points = [
        point("q8_0", 0.9, 144_000_000),
        point("blocks-20_q4_0", 0.8, 60_000_000, over={"drop": 9.0}),
        point("blocks-10_q4_0", 0.5, 65_000_000, **broke),
        {"name": "odd", "failed": "no multiple"},
    ]
    nearest = None if chosen else "blocks-20_q4_0"
    return {"budget": "bytes<=60MB, drop<=1pt", "points": points, "chosen": chosen, "nearest": nearest}


@pytest.fixture
def report(
    fake_run: SimpleNamespace, answerers: dict[str, Callable[[], FakeAnswerer]]
) -> Callable[[], tuple[Any, str]]:
    def make() -> tuple[Any, str]:
        folder: Path = fake_run.folder / "report"
        folder.mkdir(exist_ok=True)
        run(Settings(latency_requests=5, warm_up_requests=0), fake_run, folder, answerers)
        return read_json(folder / "report.json"), (folder / "report.html").read_text(encoding="utf-8")

    return make


def test_without_a_search_nothing_is_shown(report: Any) -> None:
    made, html = report()
    assert made["compress_search"] is None
    assert "The front of smaller models" not in html


def test_the_front_is_drawn_and_listed(report: Any, fake_run: SimpleNamespace) -> None:
    write_json(fake_run.folder / "compress_search" / "search.json", outcome())
    made, html = report()
    assert made["compress_search"]["chosen"] == "q8_0"
    assert "Within bytes&lt;=60MB, drop&lt;=1pt: q8_0." in html
    assert "Exact calls on valid against bytes" in html
    assert "Exact calls on valid against latency" in html
    assert "above the limit of drop" in html
    assert "not promoted: typos went from 90.0 to 60.0 %" in html
    text = (fake_run.folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "| blocks-20_q4_0 | 80.0 % | 75.0–85.0 | 60.0 MB |" in text


def test_a_search_after_the_report_is_added_to_it(report: Any, fake_run: SimpleNamespace) -> None:
    before, _ = report()
    write_json(fake_run.folder / "compress_search" / "search.json", outcome(None))
    front.show_search(fake_run.folder, 100)
    after = read_json(fake_run.folder / "report" / "report.json")
    assert {**after, "compress_search": None} == before
    html = (fake_run.folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "the nearest is blocks-20_q4_0 (above the limit of drop)" in html


def test_a_run_without_a_report_is_left_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "compress_search" / "search.json", outcome())
    front.show_search(tmp_path, 100)
    assert not (tmp_path / "report").exists()


def test_lines_begin_with_the_most_exact() -> None:
    assert [line["name"] for line in front.lines(outcome())] == ["q8_0", "blocks-20_q4_0", "blocks-10_q4_0"]
    assert [line["chosen"] for line in front.lines(outcome())] == [True, False, False]
    assert front.lines(None) == []


def test_what_the_gate_measured_and_refused_is_told(report: Any, fake_run: SimpleNamespace) -> None:
    compared = {"student": 0.9, "artifact": 0.85, "mean": -0.05, "low": -0.08, "high": -0.02, "n": 100}
    gate = {
        "promoted": True,
        "broke": [],
        "exact": {**compared, "ok": True},
        "trust": [{"name": "refusal_general", **compared, "ok": False}],
    }
    refused = [{"type": "q4_0", "broke": ["exact calls went from 90.0 to 50.0 %"]}]
    last = {"name": "gguf", "type": "q8_0", "exact": 0.9, "gate": gate, "refused": refused, "fell_back": True}
    write_json(fake_run.folder / "compress" / "steps.json", [{"name": "student", "exact": 0.9}, last])
    _, html = report()
    words = " ".join(html.split())
    assert "What the artifact holds against the student" in words
    assert "refusal general" in words
    assert "<td>−5.0</td><td>−8.0 to −2.0</td><td>100</td><td>broke</td>" in words
    assert "Not promoted: q4_0: exact calls went from 90.0 to 50.0 %" in words
    assert "the artifact is the student of the stage before" in words
