"""Progress where the output is no terminal: lines that come while work counts and while it does not."""

from __future__ import annotations

import threading
from contextlib import suppress
from io import StringIO

import pytest
from rich.console import Console

from supertiny.core import progress as progress_module
from supertiny.core.progress import Progress, every

PATIENCE = 60.0  # seconds until a test that waits fails instead


class Page(StringIO):
    """What was printed; `printed` is set with each line."""

    def __init__(self) -> None:
        super().__init__()
        self.printed = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        self.printed.set()
        return written


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setattr(progress_module, "every", lambda seconds, act: every(0.01, act))
    return Page()


def test_work_that_counts_nothing_for_long_is_told(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_ALIVE_EVERY_SECONDS", 0.0)
    with Progress(Console(file=page)).task("asking", 40, "requests") as tick:
        assert page.printed.wait(PATIENCE)
        assert page.getvalue().startswith("  asking: 0 of 40 requests, ")
        for done in (1, 38):  # from the second on there is a pace
            tick(done)
        while "39 of 40" not in page.getvalue():
            page.printed.clear()
            assert page.printed.wait(PATIENCE)
        tick(1)
        assert "  asking: 40 of 40 requests, " in page.getvalue()
    said = page.getvalue()
    before, _, last = said.partition("40 of 40")
    assert "left" not in before, "nobody knows the pace of what is not counted"
    assert "about 0 s left" in last
    page.printed.clear()
    assert not page.printed.wait(0.05), "nothing once it is over"
    assert page.getvalue() == said


def test_work_that_counts_is_told_by_its_counts_alone(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = threading.Event()
    monkeypatch.setattr(progress_module, "every", lambda seconds, act: every(0.01, lambda: (act(), beats.set())))
    with Progress(Console(file=page)).task("asking", 3, "requests") as tick:
        assert beats.wait(PATIENCE)
        assert page.getvalue() == "", "it was not silent for a minute"
        for _ in range(3):
            tick(1)
    assert page.getvalue().splitlines()[-1].startswith("  asking: 3 of 3 requests, ")


def test_what_is_repeated_ends_with_its_block() -> None:
    acted, before = threading.Event(), set(threading.enumerate())
    with suppress(KeyError), every(0.001, acted.set):
        assert acted.wait(PATIENCE)
        raise KeyError
    assert set(threading.enumerate()) <= before


def test_what_is_repeated_fails_at_the_end_of_its_block() -> None:
    acted = threading.Event()

    def fails() -> None:
        acted.set()
        raise SystemExit(1)

    with pytest.raises(SystemExit), every(0.001, fails):
        assert acted.wait(PATIENCE)
