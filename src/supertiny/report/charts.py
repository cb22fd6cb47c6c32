"""Small SVG charts of our own: they take their colours from the page, so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from supertiny.report.numbers import points

WIDTH, HEIGHT = 560, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 18, 50
_LETTER = 7.4  # widest mean width of a letter of a label, in units of the drawing
_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """A mark with an interval: `name` chooses colour and shape, `label` is what people read."""

    name: str
    label: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """From values to places of the drawing, linear or logarithmic."""

    first: float
    last: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.first) / math.log(self.last / self.first)
        else:
            share = (value - self.first) / (self.last - self.first)
        return self.start + share * (self.end - self.start)


def scatter(
    marks: Sequence[Point], title: str, x_title: str, written: Callable[[float], str], tick: Callable[[float], str]
) -> Markup:
    """Exact calls in percent against something positive on a logarithmic axis, with intervals and labels."""
    marks = [mark for mark in marks if mark.x > 0]
    if not marks:
        return Markup("")
    decades = _decades([mark.x for mark in marks])
    lowest = max(0.0, math.floor(min(mark.low for mark in marks) * 10 - 0.2) / 10)
    highest = min(1.0, math.ceil(max(mark.high for mark in marks) * 10 + 0.2) / 10)
    x = Scale(decades[0], decades[-1], _LEFT, WIDTH - _RIGHT, log=True)
    y = Scale(lowest, highest, HEIGHT - _BOTTOM, _TOP)
    step = 0.1 if highest - lowest < 0.75 else 0.2
    rows = [lowest + step * i for i in range(round((highest - lowest) / step) + 1)]
    parts = [_row(y(row), f"{100 * row:.0f}") for row in rows if row <= highest + 1e-9]
    parts += [_column(x(value), tick(value)) for value in decades]
    parts += [_axis_titles(x_title, "exact calls, %")]
    places = [(x(mark.x), y(mark.y)) for mark in marks]
    whiskers = [(left - 8, y(mark.high), left + 8, y(mark.low)) for mark, (left, _) in zip(marks, places, strict=True)]
    labels = _label_places(whiskers, [mark.label for mark in marks])
    for point, (left, top), (label_left, label_top, anchor) in zip(marks, places, labels, strict=True):
        tip = f"{point.label}: {100 * point.y:.1f} % ({100 * point.low:.1f}–{100 * point.high:.1f}), {written(point.x)}"
        parts.append(
            Markup(
                '<g class="mark m-{}"><title>{}</title><line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" '
                'y2="{:.1f}"/>{}<text class="label" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text></g>'
            ).format(
                point.name,
                tip,
                left,
                left,
                y(point.low),
                y(point.high),
                shape(point.name, left, top),
                label_left,
                label_top,
                anchor,
                point.label,
            )
        )
    return _svg(title, parts)


def ladder(steps: Sequence[Point], title: str) -> Markup:
    """Bars of exact calls one after the other, with intervals and the change from each to the next (x is unused)."""
    if not steps:
        return Markup("")
    height = 34 + 46 * len(steps)
    label_width, right = 148, WIDTH - 60
    x = Scale(0.0, 1.0, label_width, right)
    parts = [
        Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="8" y2="{1}"/>').format(x(share), height - 24)
        + _text(x(share), height - 8, f"{100 * share:.0f} %", "tick", "middle")
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    before: Point | None = None
    for place, step in enumerate(steps):
        top = 12 + 46 * place
        tip = f"{step.label}: {100 * step.y:.1f} % ({100 * step.low:.1f}–{100 * step.high:.1f})"
        parts.append(
            Markup(
                '<g class="mark m-{}"><title>{}</title><rect class="bar" x="{:.1f}" y="{}" width="{:.1f}" height="26" '
                'rx="3"/><line class="whisker over" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/></g>'
            ).format(
                step.name,
                tip,
                x(0),
                top,
                max(1.0, x(step.y) - x(0)),
                x(step.low),
                x(step.high),
                top + 13,
                top + 13,
            )
        )
        parts.append(_text(label_width - 10, top + 17, step.label, "label", "end"))
        parts.append(_text(x(step.high) + 8, top + 17, f"{100 * step.y:.1f}", "value", "start"))
        if before is not None:
            change = points(step.y - before.y)
            kind = {"+": "up", "−": "down"}.get(change[0], "even")
            parts.append(_text(WIDTH - 6, top - 6, change, f"change {kind}", "end"))
        before = step
    return _svg(title, parts, height)


def lines(
    series: Sequence[tuple[str, str, float, float]], title: str, crossing: float | None, tick: Callable[[float], str]
) -> Markup:
    """Cumulative dollars against requests, both logarithmic: each series is (name, label, once, per request)."""
    middle = crossing if crossing and crossing > 0 else 10_000.0
    first, last = 10 ** math.floor(math.log10(middle) - 1.5), 10 ** math.ceil(math.log10(middle) + 1.5)
    values = [once + each * count for _, _, once, each in series for count in (first, last)]
    decades = _decades([value for value in values if value > 0] or [1.0])
    x = Scale(first, last, _LEFT + 16, WIDTH - _RIGHT, log=True)
    y = Scale(decades[0], decades[-1], HEIGHT - _BOTTOM, _TOP, log=True)
    step = max(1, math.ceil(len(decades) / 7))
    parts = [_row(y(value), tick(value), _LEFT + 16) for value in decades[::step]]
    columns = [10.0**power for power in range(round(math.log10(first)), round(math.log10(last)) + 1)]
    parts += [_column(x(value), _short(value)) for value in columns]
    parts += [_axis_titles("requests answered", "")]
    for name, label, once, each in series:
        counts = [first * (last / first) ** (i / 60) for i in range(61)]
        places = [(x(count), y(max(decades[0], once + each * count))) for count in counts]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
        # A label stands where its line is far from the other: the pipeline ends high, the artifact starts high.
        left, top, anchor = (*places[-1], "end") if once == 0 else (*places[0], "start")
        label_top = max(_TOP + 10, top - 10)
        parts.append(
            Markup('<g class="mark m-{}"><title>{}</title><polyline class="line" points="{}"/>').format(
                name, label, path
            )
            + _text(left + (-6 if once == 0 else 6), label_top, label, "label", anchor)
            + Markup("</g>")
        )
    if crossing and first < crossing < last:
        cost = next((each * crossing for _, _, once, each in series if once == 0), decades[0])
        parts.append(
            Markup('<line class="crossing" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2}"/>').format(
                x(crossing), y(cost), HEIGHT - _BOTTOM
            )
            + Markup('<circle class="crossing" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(x(crossing), y(cost))
        )
    return _svg(title, parts)


def shape(name: str, x: float, y: float) -> Markup:
    """A mark of its own for each answerer, so that colour alone never tells them apart."""
    if name in ("pipeline", "plain_prompt"):
        turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if name == "plain_prompt" else ""
        return Markup('<rect class="dot" x="{:.1f}" y="{:.1f}" width="11" height="11" rx="1"{}/>').format(
            x - 5.5, y - 5.5, Markup(turn)
        )
    if name in ("student", "labelled_only"):
        up = -1 if name == "student" else 1
        corners = f"{x:.1f},{y + 7 * up:.1f} {x - 6.5:.1f},{y - 5 * up:.1f} {x + 6.5:.1f},{y - 5 * up:.1f}"
        return Markup('<polygon class="dot" points="{}"/>').format(corners)
    return Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(x, y, 7 if name == "artifact" else 5)


def _svg(title: str, parts: Sequence[Markup], height: int = HEIGHT) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>')
    return head.format(WIDTH, height, title, title) + Markup("").join(parts) + Markup("</svg>")


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )


def _row(y: float, text: str, left: float = _LEFT) -> Markup:
    line = Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>').format(left, WIDTH - _RIGHT, y)
    return line + _text(left - 8, y + 4, text, "tick", "end")


def _column(x: float, text: str) -> Markup:
    line = Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(x, _TOP, HEIGHT - _BOTTOM)
    return line + _text(x, HEIGHT - _BOTTOM + 18, text, "tick", "middle")


def _axis_titles(x_title: str, y_title: str) -> Markup:
    across = _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 10, x_title, "axis", "middle")
    if not y_title:
        return across
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    up = Markup(
        '<text class="axis" x="14" y="{0:.1f}" text-anchor="middle" transform="rotate(-90 14 {0:.1f})">{1}</text>'
    )
    return across + up.format(middle, y_title)


def _decades(values: Sequence[float]) -> list[float]:
    """Powers of ten from below the least to above the greatest, at least two."""
    least = math.floor(math.log10(min(values)) - 0.02)
    most = max(math.ceil(math.log10(max(values)) + 0.02), least + 1)
    return [10.0**power for power in range(least, most + 1)]


def _short(value: float) -> str:
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:g} {letter}"
    return f"{value:g}"


def _label_places(whiskers: Sequence[_Box], labels: Sequence[str]) -> list[tuple[float, float, str]]:
    """For each mark, given as the box of its whisker, the place of its label that crosses the fewest other things."""
    taken = list(whiskers)
    places = []
    for (left, top, right, bottom), label in zip(whiskers, labels, strict=True):
        width = _LETTER * len(label)
        x, y = (left + right) / 2, (top + bottom) / 2
        offered = [(x + 12, y + 4, "start"), (x - 12, y + 4, "end")]
        offered += [
            (x, top - 6, "middle"),
            (x, bottom + 15, "middle"),
            (x, top - 22, "middle"),
            (x, bottom + 31, "middle"),
        ]
        boxes = [_box(place, width) for place in offered]
        costs = [
            rank + 50 * _is_outside(box) + 10 * sum(_cross(box, other) for other in taken)
            for rank, box in enumerate(boxes)
        ]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        places.append(offered[best])
    return places


def _box(place: tuple[float, float, str], width: float) -> _Box:
    """Left, top, right, bottom of a text."""
    x, y, anchor = place
    left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * width
    return left, y - 11, left + width, y + 3


def _is_outside(box: _Box) -> bool:
    return box[0] < _LEFT + 2 or box[2] > WIDTH - 2 or box[1] < 2 or box[3] > HEIGHT - _BOTTOM


def _cross(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
