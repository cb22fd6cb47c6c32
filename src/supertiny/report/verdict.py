"""The report in a sentence or two, as careful as its intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supertiny.report import numbers

TITLES = {
    "tfidf_floor": "TF-IDF floor",
    "labelled_only": "Student, labels only",
    "plain_prompt": "Plain prompt",
    "pipeline": "Teacher pipeline",
    "student": "Student",
    "artifact": "Artifact",
}
NOTES = {
    "tfidf_floor": "calls of the nearest known example",
    "labelled_only": "trained on the labelled rows alone",
    "plain_prompt": "the teacher's model, all functions in one prompt",
    "pipeline": "the teacher's model in its pipeline of steps",
    "student": "trained on verified data, before compression; it writes freely",
    "artifact": "what is served; it writes under the schema of the functions",
}


def title_of(name: str) -> str:
    return TITLES.get(name, name)


def verdict(report: Mapping[str, Any]) -> str:
    """How the artifact (or the student) compares with the pipeline, or else how exact the best answerer is."""
    entries = {entry["name"]: entry for entry in report["answerers"]}
    ours = next((name for name in ("artifact", "student") if name in entries), None)
    if ours is None or "pipeline" not in entries:
        best = max(report["answerers"], key=lambda entry: entry["exact"])
        return f"{title_of(best['name'])} is the most exact: {numbers.percent(best['exact'])} of {best['n']} test rows."
    mine, teacher = entries[ours], entries["pipeline"]
    gains = [
        _ratio(teacher["p50_seconds"], mine["p50_seconds"], "faster", "slower"),
        _ratio(teacher["dollars_per_1000"], mine["dollars_per_1000"], "cheaper", "dearer"),
    ]
    size = [numbers.size(mine["bytes"])] if mine["bytes"] else []
    parts = ", ".join([_quality(report, ours), *filter(None, gains), *size])
    return f"The {ours} is {parts}."


def sureness(low: float, high: float) -> str:
    """What a 95 % interval of a difference allows to say."""
    if low > 0:
        return "clearly better"
    return "clearly worse" if high < 0 else "no clear difference"


def _quality(report: Mapping[str, Any], ours: str) -> str:
    entries = {entry["name"]: entry for entry in report["answerers"]}
    difference = entries[ours]["exact"] - entries["pipeline"]["exact"]
    shown = numbers.points(difference).lstrip("+−")
    if shown == "0.0":
        words = "as exact as the pipeline"
    else:
        unit = "point" if shown == "1.0" else "points"
        words = f"{shown} {unit} {'above' if difference > 0 else 'below'} the pipeline"
    pair = next((d for d in report["differences"] if (d["left"], d["right"]) == (ours, "pipeline")), None)
    return words if pair is None else f"{words} (95 %: {numbers.points(pair['low'])} to {numbers.points(pair['high'])})"


def _ratio(theirs: float | None, mine: float | None, better: str, worse: str) -> str:
    if not theirs or not mine:
        return ""
    if theirs >= mine:
        return f"{numbers.times(theirs / mine)} {better}"
    return f"{numbers.times(mine / theirs)} {worse}"
