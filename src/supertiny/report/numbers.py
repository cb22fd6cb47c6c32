"""Numbers as people read them: one place decides digits and units."""

from __future__ import annotations

MISSING = "–"


def percent(share: float | None) -> str:
    """0.7123 -> `71.2 %`."""
    return MISSING if share is None else f"{100 * share:.1f} %"


def interval(low: float, high: float) -> str:
    """Two shares in percent: `66.6–75.4`."""
    return f"{100 * low:.1f}–{100 * high:.1f}"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign: `+0.3`, `−1.2`, `0.0`."""
    rounded = round(round(100 * difference, 6), 1)  # a half is rounded alike, wherever it was computed
    sign = "+" if rounded > 0 else "−" if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def duration(seconds: float | None) -> str:
    """Milliseconds below one second, then seconds, minutes, hours."""
    if seconds is None:
        return MISSING
    if seconds < 0.9995:
        return f"{_digits(seconds * 1000, 2 if seconds < 0.01 else 3)} ms"
    if seconds < 99.95:
        return f"{_digits(seconds, 3)} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def size(count: float | None) -> str:
    """Bytes in decimal units: `52.3 MB`. Nothing measured reads as a dash."""
    if not count:
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * scale:
            return f"{_digits(count / scale, 3)} {unit}"
    return f"{count:.0f} B"


def dollars(amount: float | None) -> str:
    """`$1,234`, `$12.30`, `$0.042`, `$0.00012`: at least two digits that say something."""
    if amount is None:
        return MISSING
    if amount == 0:
        return "$0"
    sign, amount = ("−" if amount < 0 else ""), abs(amount)
    if amount >= 1000:
        return f"{sign}${amount:,.0f}"
    return f"{sign}${amount:.2f}" if amount >= 1 else f"{sign}${_digits(amount, 2)}"


def dollar_tick(amount: float) -> str:
    """A power of ten on an axis: `$0.001`, `$10`."""
    return f"${_digits(amount, 1)}"


def duration_tick(seconds: float) -> str:
    """A power of ten on an axis: `0.1 ms`, `10 ms`, `1 s`."""
    return f"{_digits(seconds * 1000, 1)} ms" if seconds < 0.9995 else f"{_digits(seconds, 1)} s"


def count(number: float | None) -> str:
    """`1,234`, `2.4 million`; a mean below 100 keeps one decimal."""
    if number is None:
        return MISSING
    for scale, word in ((1e9, "billion"), (1e6, "million")):
        if number >= scale:
            return f"{_digits(number / scale, 3)} {word}"
    return f"{number:.1f}" if number < 100 and number != int(number) else f"{number:,.0f}"


def times(ratio: float) -> str:
    """`21×`, `3.4×`."""
    return f"{ratio:,.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×"


def _digits(value: float, significant: int) -> str:
    """That many significant digits, never in the exponent form, whole numbers kept whole."""
    if value == 0:
        return "0"
    magnitude = int(f"{value:.{significant - 1}e}".split("e")[1])  # after rounding: 999.9 has four digits
    return f"{value:.{max(0, significant - 1 - magnitude)}f}"
