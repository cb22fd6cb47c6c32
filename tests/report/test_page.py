"""The page stands on its own, says what the numbers say, and hands its rows to the script unharmed."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supertiny.core.files import read_json, read_rows
from supertiny.report import charts, numbers
from supertiny.report.page import embedded, page
from supertiny.report.settings import Settings
from supertiny.report.stage import run
from tests.report.fakes import HOSTILE, FakeAnswerer

VOID = {"meta", "br", "input", "link", "hr", "img"}


class Reader(HTMLParser):
    """Checks that elements nest, and keeps attributes and the data of the embedded rows."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append("data" if ("id", "data") in attrs else tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() in (tag, "data"), tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "data":
            self.data += data
        elif self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture
def made(
    fake_run: SimpleNamespace, answerers: dict[str, Callable[[], FakeAnswerer]]
) -> tuple[dict[str, Any], Any, str]:
    folder: Path = fake_run.folder / "report"
    folder.mkdir()
    run(Settings(latency_requests=5, warm_up_requests=0), fake_run, folder, answerers)
    html = (folder / "report.html").read_text(encoding="utf-8")
    return read_json(folder / "report.json"), read_rows(folder / "rows.jsonl"), html


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def test_it_asks_no_network(made: tuple[dict[str, Any], Any, str]) -> None:
    html = made[2]
    reader = read(html)
    for tag, name, value in reader.attributes:
        assert name not in ("src", "srcset", "action"), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
        assert name != "href" or value.startswith("#"), value
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttpRequest|innerHTML", html)


def test_every_link_inside_leads_somewhere(made: tuple[dict[str, Any], Any, str]) -> None:
    attributes = read(made[2]).attributes
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in attributes:
        if name == "href":
            assert value[1:] in ids
        if name == "aria-labelledby":
            assert value in ids


def test_it_says_what_the_report_says(made: tuple[dict[str, Any], Any, str]) -> None:
    report, _, html = made
    text = " ".join(" ".join(read(html).words).split())
    assert report["verdict"] in text
    for entry in report["answerers"]:
        assert numbers.percent(entry["exact"]) in text
        assert numbers.dollars(entry["dollars_per_1000"]) in text
        assert numbers.interval(entry["exact_low"], entry["exact_high"]) in text
    assert f"{numbers.count(report['break_even']['requests'])} requests to break even" in text
    assert "pipeline on test measuring, not in the sum" in text
    assert "imitate 700 – 60.0 % 53.0–66.0 – 90,000 5.0 min" in text
    assert "reinforce 700 60.0 % 64.0 % 57.0–70.0 +4.0 50,000 3.3 min" in text
    assert "prefers-color-scheme: dark" in html


def test_the_rows_arrive_unharmed(made: tuple[dict[str, Any], Any, str]) -> None:
    _, rows, html = made
    data = json.loads(read(html).data)
    wrong = [row for row in rows if not all(answer["exact"] for answer in row["answers"].values())]
    assert [row["id"] for row in data["rows"]] == [row["id"] for row in wrong]
    texts = {row["text"] for row in data["rows"]}
    assert HOSTILE in texts
    assert any("спальня" in text for text in texts)
    assert any("客厅" in text for text in texts)
    assert list(data["titles"]) == ["tfidf_floor", "plain_prompt", "pipeline", "student", "artifact"]


def test_the_page_holds_no_more_rows_than_it_may(made: tuple[dict[str, Any], Any, str]) -> None:
    report, rows, _ = made
    assert len(json.loads(read(page(report, rows, 3)).data)["rows"]) == 3


def test_embedded_json_cannot_end_its_element() -> None:
    value = {"text": "</script><!-- & \u2028 'x' \"y\" 客厅 😀"}
    text = str(embedded(value))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value
    assert "客厅" in text


POINTS = [
    charts.Point("pipeline", "Teacher <pipeline>", 0.03, 0.85, 0.81, 0.88),
    charts.Point("artifact", "Artifact", 0.0008, 0.85, 0.81, 0.88),
    charts.Point("tfidf_floor", "Floor", 0.0, 0.5, 0.4, 0.6),
]


def test_charts_are_well_formed_and_inside_their_frame() -> None:
    drawings = [
        charts.scatter(POINTS, "a & b", "dollars", numbers.dollars, numbers.dollar_tick),
        charts.ladder(POINTS, "steps"),
        charts.lines([("pipeline", "P", 0.0, 1e-5), ("artifact", "A", 0.2, 1e-7)], "x", 20_000.0, numbers.dollar_tick),
        charts.lines([("pipeline", "P", 0.0, 1e-7), ("artifact", "A", 0.0, 0.0)], "x", None, numbers.dollar_tick),
    ]
    for drawing in drawings:
        root = ElementTree.fromstring(str(drawing))
        _, _, width, height = (float(part) for part in root.attrib["viewBox"].split())
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        for element in root.iter():
            for name, limit in (("x", width), ("x1", width), ("x2", width), ("cx", width)):
                assert -1 <= float(element.attrib.get(name, 0)) <= limit + 1
            for name in ("y", "y1", "y2", "cy"):
                assert -1 <= float(element.attrib.get(name, 0)) <= height + 1


def test_what_costs_nothing_has_no_place_on_a_logarithmic_axis() -> None:
    drawing = str(charts.scatter(POINTS, "t", "x", numbers.dollars, numbers.dollar_tick))
    assert "Floor" not in drawing
    assert "Teacher &lt;pipeline&gt;" in drawing
    assert str(charts.scatter(POINTS[2:], "t", "x", numbers.dollars, numbers.dollar_tick)) == ""


def test_labels_of_marks_at_one_place_do_not_cover_each_other() -> None:
    same = [charts.Point("student", f"Label {i}", 1.0, 0.5, 0.45, 0.55) for i in range(4)]
    drawing = ElementTree.fromstring(str(charts.scatter(same, "t", "x", numbers.dollars, numbers.dollar_tick)))
    places = [
        (element.attrib["x"], element.attrib["y"], element.attrib["text-anchor"])
        for element in drawing.iter()
        if element.attrib.get("class") == "label"
    ]
    assert len(set(places)) == 4


def test_the_ladder_shows_the_change_from_step_to_step() -> None:
    steps = [
        charts.Point("plain_prompt", "Plain", 0, 0.38, 0.33, 0.43),
        charts.Point("pipeline", "Pipeline", 0, 0.85, 0.8, 0.9),
        charts.Point("student", "Student", 0, 0.838, 0.8, 0.87),
    ]
    drawing = str(charts.ladder(steps, "t"))
    assert "+47.0" in drawing
    assert "−1.2" in drawing
