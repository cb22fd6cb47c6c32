"""SNIPS: 200 labelled rows, measured on valid. One plain prompt, the nearest examples, and a pipeline, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks._data import folder_of, snips_task
from benchmarks._measuring import Measured, Room, Row, line, measured, shares
from supertiny.core.records import Answer, Example, Sampling
from supertiny.core.scoring import typed
from supertiny.core.task import Task
from supertiny.prototype.bench import Bench, Trace

LABELLED = 200
STEP_ROWS = 100  # of valid, on which each step's worth is measured
NEAREST: Any = {"method": "retrieve", "examples": 8}
FEW: Any = {"method": "retrieve", "examples": 3}
# Steps within `stack`, which leads them, and whether it has a reader; the best on labelled rows, each unseen, is taken.
WITHIN: dict[str, tuple[list[Any], bool]] = {
    "filled": (["classify", NEAREST, "fill"], False),
    "filled, with a reader": (["classify", NEAREST, "fill"], True),
    "marked, with a reader": (["classify", FEW, "mark"], True),
}
QUICK = "filled, with a reader"
SECOND_CALL_SHARE = 0.01  # of labelled rows that must come out right for another model call a request


@dataclass(frozen=True)
class FreeFill:
    """One completion without a grammar, the baseline: what does not read as calls is no answer."""

    calls_per_request = 1.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        paid, done = bench.complete(traces, [bench.prompt(trace) for trace in traces], Sampling(128))
        return [trace.answered(c.text, _read(bench, c.text)) for trace, c in zip(paid, done, strict=True)]


def _read(bench: Bench, text: str) -> Answer | None:
    try:
        return typed(bench.form.decode(text), bench.task.tool_map)
    except ValueError:
        return None


def snips(room: Room, pipeline: str = "auto") -> tuple[list[Row], list[dict[str, Any]]]:
    """(figures, the table of what each step adds); `pipeline` is a name in WITHIN, or auto."""
    task = snips_task(folder_of("snips", room.data), 35 if room.quick else LABELLED, room.seed)
    rows = task.valid[: room.count(0) or None]
    plain = measured(room, task, "plain", rows, ["plain"], "chat_json")
    nearest = measured(room, task, "nearest 8", rows, [NEAREST, FreeFill()], "chat_json")
    name, choice = chosen(room, task, pipeline)
    led = measured(room, task, "pipeline", rows, [known_as(name, room)])
    figures = [
        *shares("snips_plain_exact", "one plain prompt, JSON grammar: exact calls", plain.hits),
        *shares("snips_nearest8_exact", "8 nearest examples, no grammar", nearest.hits),
        ("snips_nearest8_seconds", "seconds a request", nearest.seconds),
        *shares("snips_pipeline_exact", "the pipeline", led.hits),
        ("snips_pipeline_seconds", "seconds a request", led.seconds),
        ("snips_pipeline_preparation_seconds", "labelled rows answered once, before any request", led.once_seconds),
        ("snips_plain_slot_f1", "F1 of functions, arguments and values", plain.slot_f1(rows, task)),
        ("snips_nearest8_slot_f1", "", nearest.slot_f1(rows, task)),
        ("snips_pipeline_slot_f1", "", led.slot_f1(rows, task)),
    ]
    steps = rows[: room.count(STEP_ROWS, 10) or None]
    return figures, choice + worth_of_steps(room, task, steps, (plain, nearest, led), name)


def stacked(within: Sequence[Any], reader: str = "") -> dict[str, Any]:
    return {"method": "stack", "steps": list(within), "reader": reader}


def known_as(name: str, room: Room) -> dict[str, Any]:
    within, reads = WITHIN[name]
    return stacked(within, room.reader if reads else "")


def chosen(room: Room, task: Task, name: str) -> tuple[str, list[dict[str, Any]]]:
    """The name of the steps with which most labelled rows come out right, each unseen: valid has no say in it."""
    if name != "auto" or room.quick:
        return QUICK if name == "auto" else name, []
    table, worth = [], {}
    for known, (within, _) in WITHIN.items():
        found = measured(room, task, f"labelled rows, {known}", task.labelled, [known_as(known, room)])
        table.append(line(f"choice, on labelled rows: {known}", found.hits))
        worth[known] = found.share - SECOND_CALL_SHARE * sum(step in ("fill", "mark") for step in within)
    best = max(worth, key=worth.__getitem__)
    room.progress.note(f"  chosen on labelled rows: {best}")
    return best, table


def worth_of_steps(
    room: Room,
    task: Task,
    rows: Sequence[Example],
    known: tuple[Measured, Measured, Measured],
    name: str,
) -> list[dict[str, Any]]:
    """Each step put on the ones before, then the pipeline without one of its steps; all on the same rows."""
    within, reads = WITHIN[name]
    reader = room.reader if reads else ""
    plain, nearest, led = (one.first(len(rows)) for one in known)
    climbed = [plain, nearest]
    if within[-1] == "mark":
        climbed.append(measured(room, task, "mark in place of JSON", rows, [NEAREST, "mark"]))
    climbed.append(measured(room, task, "+ classify, and the rest but stack", rows, within))
    if reader:
        climbed.append(measured(room, task, "+ stack without a reader", rows, [stacked(within)]))
    climbed.append(led)
    table = [_line(one, before, rows, task) for one, before in zip(climbed, [None, *climbed[:-1]], strict=True)]
    for place, step in enumerate(within):
        left = [*within[:place], *within[place + 1 :]]
        without = f"without {step if isinstance(step, str) else step['method']}"
        # Without examples the model does not know the format: it writes Python, and each call takes seconds.
        if any(one in ("fill", "mark") for one in left) and step not in (NEAREST, FEW):
            table.append(_line(measured(room, task, without, rows, [stacked(left, reader)]), led, rows, task))
    table.append(_line(measured(room, task, "without the model", rows, [stacked([], reader)]), led, rows, task))
    return table


def _line(one: Measured, against: Measured | None, rows: Sequence[Example], task: Task) -> dict[str, Any]:
    known = None if against is None else (against.name, against.hits)
    return line(one.name, one.hits, known, slot_f1=one.slot_f1(rows, task), seconds=one.seconds)
