"""What is going on, how far, how long still: one live line per task on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
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
_ALIVE_EVERY_SECONDS = 60.0  # of work that counts nothing for so long


class Progress:
    """Progress of a run. Where the output is no terminal, lines and no bar: each 15 seconds, or 60 if nothing moves."""

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
            with self._plain(title, total, unit) as advance:
                yield advance

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

    @contextmanager
    def _plain(self, title: str, total: float, unit: str) -> Iterator[Callable[[float], None]]:
        began = last = time.monotonic()
        count = 0.0
        first: tuple[float, float] | None = None  # the first units also warm up: the pace is counted from their end

        def tell(silence: float, alone: bool = False) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= silence:
                last = now
                # While nothing is counted, nobody knows the pace.
                pace = (now - first[0]) / (count - first[1]) if first and count > first[1] and not alone else None
                left = f", about {pace * max(0.0, total - count):.0f} s left" if pace is not None else ""
                self.note(f"  {title}: {count:.0f} of {total:.0f} {unit}, {now - began:.0f} s{left}")

        def advance(step: float) -> None:
            nonlocal count, first
            before, count = count, count + step
            first = first or (time.monotonic(), count)
            ended = before < total <= count  # totals may be estimates: what comes after is told every 15 seconds too
            tell(0.0 if ended else _PLAIN_EVERY_SECONDS)

        with every(_PLAIN_EVERY_SECONDS, lambda: tell(_ALIVE_EVERY_SECONDS, alone=True)):
            yield advance


@contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` each so many seconds, in a thread, while the block lasts; what it raises, the block's end raises."""
    ended, raised = threading.Event(), list[BaseException]()

    def repeat() -> None:
        try:
            while not ended.wait(seconds):
                act()
        except BaseException as error:  # rich leaves by SystemExit where nobody reads its output any more
            raised.append(error)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if raised:
        raise raised[0]
