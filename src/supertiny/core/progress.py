"""What is going on, how far, how long still: one live line per task on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

_PLAIN_EVERY_SECONDS = 15.0


class Progress:
    """Progress of a run. Where the output is no terminal, a line is printed every 15 seconds instead of a bar."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True)
        self.quiet = quiet

    def note(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, title: str, total: float, unit: str = "") -> Iterator[Callable[[float], None]]:
        """Gives a function to call with the number of units that were just done."""
        if self.quiet:
            yield lambda count: None
        elif self.console.is_terminal:
            with self._bars() as bars:
                line = bars.add_task(title, total=total, unit=unit)
                yield lambda count: bars.advance(line, count)
        else:
            yield self._plain(title, total, unit)

    @contextmanager
    def share(self, title: str, total: float = 100.0, unit: str = "%") -> Iterator[Callable[[float, float], None]]:
        """Gives a function to call with (done, of), in whatever the work counts; shown as a share of the total."""
        shown = 0.0
        with self.task(title, total, unit) as tick:

            def advance(done: float, of: float) -> None:
                nonlocal shown
                tick(total * done / of - shown)
                shown = total * done / of

            yield advance

    def _bars(self) -> Bars:
        return Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )

    def _plain(self, title: str, total: float, unit: str) -> Callable[[float], None]:
        began = last = time.monotonic()
        count = 0.0
        first: tuple[float, float] | None = None  # the first units also warm up: the pace is counted from their end

        def advance(step: float) -> None:
            nonlocal count, last, first
            before, count = count, count + step
            now = time.monotonic()
            first = first or (now, count)
            ended = before < total <= count  # totals may be estimates: what comes after is told every 15 seconds too
            if now - last < _PLAIN_EVERY_SECONDS and not ended:
                return
            last = now
            pace = (now - first[0]) / (count - first[1]) if count > first[1] else None
            left = f", about {pace * max(0.0, total - count):.0f} s left" if pace is not None else ""
            self.note(f"  {title}: {count:.0f} of {total:.0f} {unit}, {now - began:.0f} s{left}")

        return advance
