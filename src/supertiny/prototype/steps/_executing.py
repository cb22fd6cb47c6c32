"""Carries calls out by the task's own function: some at a time, each within a time, and never fatal."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.records import Call, Request
from supertiny.core.task import Task
from supertiny.core.verifying import Execute
from supertiny.prototype.bench import Result, Trace
from supertiny.prototype.steps._references import plan_problem, resolved, said_in, waits_for

_SHOWN_CHARACTERS = 400  # of a result, to a model


def carried_out(traces: Sequence[Trace], task: Task, seconds: float, at_once: int) -> list[Trace]:
    """The traces with a result for each call that had none, and with a plan's references replaced by what they are.

    Calls that wait for nothing go first, those of all traces together; then those that waited for them, and so on. A
    plan's call with a reference that stands for nothing is never carried out: its result is an error. In calls that
    `plan` has not written, $5 is money. Raises UserError where the task has no function to call.
    """
    if task.execute is None:
        raise UserError(f"{task.folder / 'hooks.py'} has no function execute(request_text, call)", "write one")
    runs = [_Running(trace) for trace in traces]
    while jobs := [(run, number) for run in runs for number in run.ready()]:
        pairs = [(run.trace.request, run.calls[number]) for run, number in jobs]
        for (run, number), result in zip(jobs, _results(pairs, task.execute, seconds, at_once), strict=True):
            run.results[number] = result
    return [run.finished() for run in runs]


def told(results: Sequence[Result]) -> str:
    """Results as lines for a model, numbered from 1."""
    return "\n".join(f"{number}. {_line(result)}" for number, result in enumerate(results, 1))


class _Running:
    """A request's calls under way, and their results, by numbers from 1."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.calls = dict(enumerate(trace.calls or (), 1))
        self.results = dict(enumerate(trace.results, 1))
        self._said = said_in(trace.request)

    def ready(self) -> list[int]:
        """Calls that wait for nothing now; their references are replaced. What waits for a failed call has failed."""
        while True:
            ready: dict[int, Call] = {}
            failed: dict[int, Result] = {}
            for number, call in self.calls.items():
                if number in self.results or not self._waits_for(call) <= self.results.keys():
                    continue
                try:
                    ready[number] = resolved(call, self._said, self.results) if self.trace.planned else call
                except LookupError as error:
                    failed[number] = Result(call, None, str(error))
            if not failed:
                self.calls |= ready
                return list(ready)
            self.results |= failed

    def finished(self) -> Trace:
        if not self.trace.calls:
            return self.trace
        problem = plan_problem(self.trace.calls, self._said) if self.trace.planned else ""
        results = [self.results.get(number) or Result(call, None, problem) for number, call in self.calls.items()]
        return replace(self.trace, calls=tuple(self.calls.values()), results=tuple(results), planned=False)

    def _waits_for(self, call: Call) -> set[int]:
        return waits_for(call, self._said) if self.trace.planned else set()


def _results(jobs: Sequence[tuple[Request, Call]], hook: Execute, seconds: float, at_once: int) -> list[Result]:
    """One result per job, in order. The function's mistakes are results too; one that takes too long is left alone."""
    results: list[Result] = []
    for start in range(0, len(jobs), at_once):
        batch = jobs[start : start + at_once]
        boxes: list[list[Result]] = [[] for _ in batch]
        threads = [
            # A daemon: a function that never ends must not keep the program from ending.
            threading.Thread(target=_carry_out, args=(request, call, hook, box), daemon=True)
            for (request, call), box in zip(batch, boxes, strict=True)
        ]
        for thread in threads:
            thread.start()
        ends = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        for (_, call), box in zip(batch, boxes, strict=True):
            # Read once: the thread may still put its result into the box.
            given = box[:1]
            results.append(given[0] if given else Result(call, None, f"no result within {seconds:g} seconds"))
    return results


def _carry_out(request: Request, call: Call, hook: Execute, box: list[Result]) -> None:
    try:
        box.append(Result(call, _plain(hook(request.text, call.to_json()))))
    except Exception as error:  # the author's function may fail in any way: that is told, in the trace
        box.append(Result(call, None, f"{type(error).__name__}: {error}"))


def _plain(value: Any) -> Any:
    """The value as JSON has it, or as its text where JSON has no word for it."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return str(value)


def _line(result: Result) -> str:
    value = result.value if isinstance(result.value, str) else json.dumps(result.value, ensure_ascii=False)
    words = f"error: {result.error}" if result.error else value
    words = words if len(words) <= _SHOWN_CHARACTERS else words[:_SHOWN_CHARACTERS] + " ..."
    return f"{result.call.tool} {json.dumps(dict(result.call.arguments), ensure_ascii=False)} -> {words}"
