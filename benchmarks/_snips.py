"""SNIPS: 200 labelled rows, measured on valid. One plain prompt, the nearest examples, and a pipeline, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks._amend import Amend
from benchmarks._data import folder_of, snips_task
from benchmarks._guess_function import GuessFunction
from benchmarks._mark import Mark
from benchmarks._measuring import Measured, Room, Row, by_steps, measure, shares
from supertiny.core.methods import build
from supertiny.core.records import Answer, Example, Sampling
from supertiny.core.scoring import exact, paired_bootstrap, typed
from supertiny.core.task import Task
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.teacher import PlainPrompt

LABELLED = 200
SECOND_VIEW_SHARE = 0.01  # of labelled rows that a second way of asking must bring
STEP_ROWS = 100  # of valid, on which each step's worth is measured


@dataclass(frozen=True)
class FreeFill:
    """Nearest examples as turns and one completion without a grammar: what does not read as calls is no answer."""

    calls_per_request = 1.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        paid, done = bench.complete(traces, [bench.prompt(trace) for trace in traces], Sampling(128))
        return [trace.answered(c.text, _read(bench, c.text)) for trace, c in zip(paid, done, strict=True)]


def _read(bench: Bench, text: str) -> Answer | None:
    try:
        return typed(bench.form.decode(text), bench.task.tool_map)
    except ValueError:
        return None


def snips(room: Room) -> tuple[list[Row], list[dict[str, Any]]]:
    """(figures, the table of what each step adds)."""
    task = snips_task(folder_of("snips", room.data), 35 if room.quick else LABELLED, room.seed)
    rows = task.valid[: room.count(0) or None]
    steps = rows[: room.count(STEP_ROWS, 10) or None]
    plain = _measured(room, task, "plain", rows, _plain)
    nearest = _measured(room, task, "nearest 8", rows, _nearest)
    amend, chosen = choose_views(room, task)
    guess, mark = GuessFunction(), amend.views[0]
    prepared = _preparation(room, task, amend)
    led = _measured(room, task, "pipeline", rows, _pipeline([guess, mark, amend]))
    table = chosen + _ladder(room, task, steps, (plain, nearest, led), amend)
    figures = [
        *shares("snips_plain_exact", "one plain prompt, JSON grammar: exact calls", plain.hits),
        *shares("snips_nearest8_exact", "8 nearest examples, no grammar", nearest.hits),
        ("snips_nearest8_seconds", "seconds a request", nearest.seconds),
        *shares("snips_pipeline_exact", "the pipeline", led.hits),
        ("snips_pipeline_seconds", "seconds a request", led.seconds),
        ("snips_pipeline_preparation_seconds", "labelled rows marked once, before any request", prepared),
        ("snips_plain_slot_f1", "F1 of (function, argument, value)", plain.slot_f1),
        ("snips_nearest8_slot_f1", "", nearest.slot_f1),
        ("snips_pipeline_slot_f1", "", led.slot_f1),
    ]
    return figures, table


def choose_views(room: Room, task: Task) -> tuple[Amend, list[dict[str, Any]]]:
    """The way of writing, or both, with which most labelled rows come out right, each unseen: valid has no say in it.

    Two ways take twice the model calls: they must be better by `SECOND_VIEW_SHARE`.
    """
    marks = [Mark(style="marked"), Mark(style="listed", nearest=2)]
    given = {"marked": Amend(tuple(marks[:1])), "listed": Amend(tuple(marks[1:])), "both": Amend(tuple(marks))}
    if room.views in given:
        return given[room.views], []
    choices = [Amend((mark,)) for mark in (marks[:1] if room.quick else marks)]
    bench = room.bench(task, "snips: labelled rows")
    table, worth = [], []
    for choice in choices:
        with room.progress.task(f"snips: labelled rows, {choice.views[0].style}", len(task.labelled), "calls") as tick:
            traces = choice.marks(choice.views[0], room.bench(task, "snips: labelled rows", tick))
        hits = [_is_right(trace, row, task) for trace, row in zip(traces, task.labelled, strict=True)]
        table.append(_chosen_line(f"{choice.views[0].style}, before amend", sum(hits) / len(hits), len(hits)))
    if not room.quick:
        choices.append(Amend(tuple(marks)))
    for choice in choices:
        share = choice.held_out_share(bench)
        worth.append(share - SECOND_VIEW_SHARE * (len(choice.views) - 1))
        name = " and ".join(view.style for view in choice.views)
        table.append(_chosen_line(f"{name}, amended", share, len(task.labelled)))
    best = max(range(len(choices)), key=lambda place: (worth[place], -place))
    room.progress.note(f"  chosen on labelled rows: {' and '.join(view.style for view in choices[best].views)}")
    return choices[best], table


def _chosen_line(name: str, share: float, count: int) -> dict[str, Any]:
    return {"step": f"choice, on labelled rows: {name}", "exact": share, "n": count}


def _is_right(trace: Trace, row: Example, task: Task) -> bool:
    return exact(trace.calls or (), row.answer.calls if row.answer else (), task.tool_map)


def _preparation(room: Room, task: Task, amend: Amend) -> float:
    """Seconds of the calls that the chosen pipeline makes once, whatever it is asked."""
    bench = room.bench(task, "snips: labelled rows")
    return sum(trace.cost.seconds for view in amend.views for trace in amend.marks(view, bench))


def _ladder(
    room: Room, task: Task, rows: Sequence[Example], known: tuple[Measured, Measured, Measured], amend: Amend
) -> list[dict[str, Any]]:
    """Each step put on the ones before, then the pipeline without one of its parts; all on the same rows."""
    plain, nearest, led = (one.first(len(rows)) for one in known)
    guess, mark = GuessFunction(), amend.views[0]
    bare = replace(mark, own_examples=False, guide=False, nearest=8)
    rungs: list[tuple[str, list[Any]]] = [
        (f"the request {mark.style} instead of JSON", [bare]),
        ("+ guess_function: examples of its function", [guess, bare]),
        ("+ all examples of the function, shared", [guess, replace(mark, guide=False)]),
        ("+ guide: values seen of each argument", [guess, mark]),
    ]
    if len(amend.views) > 1:
        rungs.append(("+ amend, looking at one way of asking", [guess, mark, Amend((mark,))]))
    climbed = [plain, nearest, *(_measured(room, task, name, rows, _pipeline(steps)) for name, steps in rungs)]
    climbed.append(replace(led, name="+ amend: the pipeline"))
    table = [_line(one, before) for one, before in zip(climbed, [None, *climbed], strict=False)]
    without: list[tuple[str, list[Any]]] = [
        ("without the model: amend alone", [GuessFunction(ask=False), Amend(())]),
        ("without asking in doubt about the function", [GuessFunction(ask=False), mark, amend]),
        ("without handing changed words back", [guess, replace(mark, check=False), amend]),
    ]
    left_out = [_measured(room, task, name, rows, _pipeline(steps)) for name, steps in without]
    return table + [_line(one, climbed[-1]) for one in left_out]


def _line(one: Measured, against: Measured | None) -> dict[str, Any]:
    line = {
        "step": one.name, "exact": one.share, "slot_f1": one.slot_f1, "seconds": one.seconds, "n": len(one.hits),
    }  # fmt: skip
    if against is not None:
        difference, low, high = paired_bootstrap(one.hits, against.hits, seed=0)
        line |= {"against": against.name, "difference": difference, "low": low, "high": high}
    return line


def _measured(
    room: Room, task: Task, name: str, rows: Sequence[Example], make: Callable[[Bench], Callable[..., list[Answer]]]
) -> Measured:
    with room.progress.task(f"snips: {name}", len(rows), "calls") as tick:
        bench = room.bench(task, f"snips: {name}", tick)
        measured = measure(name, rows, task, bench, make(bench))
    room.progress.note(f"  {name}: {measured.share:.3f} exact of {len(rows)}, {measured.seconds:.2f} s a request")
    return measured


def _pipeline(steps: Sequence[Any]) -> Callable[[Bench], Callable[..., list[Answer]]]:
    return lambda bench: by_steps(steps, bench)


def _plain(bench: Bench) -> Callable[..., list[Answer]]:
    return PlainPrompt(bench.engine, bench.form, bench.task, lambda count: None).answer


def _nearest(bench: Bench) -> Callable[..., list[Answer]]:
    return by_steps([build("steps", {"method": "retrieve", "examples": 8}), FreeFill()], bench)
