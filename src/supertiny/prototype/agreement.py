"""How far a judge agrees with gold, measured before it is trusted: it is shown right answers and wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from supertiny.core.records import Call, Example, Tool, Verdict
from supertiny.core.scoring import exact, wilson_interval
from supertiny.core.task import Task
from supertiny.prototype.bench import Trace

Judging = Callable[[Sequence[Trace]], tuple[list[Trace], list[Verdict]]]
"""Gives the traces with what judging them cost, and a verdict on each one's answer."""
Calls = tuple[Call, ...]


@dataclass(frozen=True)
class _Share:
    """A share of `count` with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, hits: int, count: int) -> _Share:
        return cls(hits / max(1, count), *wilson_interval(hits, count), count)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Agreement:
    """Between a judge's verdicts and gold, on as many right as wrong answers; to abstain is to disagree."""

    accuracy: _Share
    kappa: float
    """Cohen's: 1 is always right, 0 is no better than chance."""
    false_pass: _Share
    """Of the wrong answers, those that the judge passed."""
    false_fail: _Share
    """Of the right answers, those that the judge failed."""
    abstained: _Share

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy}, kappa {self.kappa:.2f}, wrong answers passed {self.false_pass}, "
            f"right answers failed {self.false_fail}, abstained {self.abstained.value:.2f}, n {self.accuracy.count}"
        )


def measure_agreement(
    judge: Judging, rows: Sequence[Example], task: Task, seed: int, most: int
) -> tuple[Agreement, list[Trace]]:
    """Puts the gold calls of `rows` to the judge, and for each row wrong ones: another row's, or changed ones.

    `most` rows are drawn where there are more. Gives the agreement, and the traces with what it has cost.
    """
    generator = Random(seed)
    known = [row for row in rows if row.answer is not None]
    drawn = known if len(known) <= most else generator.sample(known, most)
    traces: list[Trace] = []
    truths: list[bool] = []
    for row in drawn:
        gold = row.answer.calls if row.answer else ()
        wrong = _wrong_calls(row, known, task, generator)
        for calls, truth in ((gold, True), (wrong, False)):
            if calls is not None:
                traces.append(replace(Trace(row.request), calls=calls))
                truths.append(truth)
    paid, verdicts = judge(traces) if traces else ([], [])
    return _agreement_of([verdict.outcome for verdict in verdicts], truths), paid


def _agreement_of(outcomes: Sequence[str], truths: Sequence[bool]) -> Agreement:
    """From verdicts (pass, fail or abstain) and whether each answer is right. Without any, the kappa is 0."""
    count = len(truths)
    wanted = ["pass" if truth else "fail" for truth in truths]
    hits = sum(outcome == want for outcome, want in zip(outcomes, wanted, strict=True))
    chance = sum(outcomes.count(word) * wanted.count(word) for word in ("pass", "fail")) / max(1, count) ** 2
    right = [outcome for outcome, truth in zip(outcomes, truths, strict=True) if truth]
    wrong = [outcome for outcome, truth in zip(outcomes, truths, strict=True) if not truth]
    return Agreement(
        accuracy=_Share.of(hits, count),
        kappa=(hits / count - chance) / (1 - chance) if count and chance < 1 else 0.0,
        false_pass=_Share.of(wrong.count("pass"), len(wrong)),
        false_fail=_Share.of(right.count("fail"), len(right)),
        abstained=_Share.of(outcomes.count("abstain"), count),
    )


def _wrong_calls(row: Example, others: Sequence[Example], task: Task, generator: Random) -> Calls | None:
    """Calls that are not the row's: an argument changed, another row's, or none; None where nothing else is known."""
    gold = row.answer.calls if row.answer else ()
    tools = {tool.name: tool for tool in row.request.tools} or task.tool_map
    ways = [_changed(gold, others, tools, generator), _of_another(others, tools, generator), ()]
    if generator.random() < 0.5:  # wrong in part, and wrong altogether
        ways[0], ways[1] = ways[1], ways[0]
    return next((calls for calls in ways if calls is not None and not exact(calls, gold, tools)), None)


def _of_another(others: Sequence[Example], tools: Mapping[str, Tool], generator: Random) -> Calls | None:
    fitting = [o.answer.calls for o in others if o.answer and o.answer.calls]
    fitting = [calls for calls in fitting if all(call.tool in tools for call in calls)]
    return generator.choice(fitting) if fitting else None


def _changed(gold: Calls, others: Sequence[Example], tools: Mapping[str, Tool], generator: Random) -> Calls | None:
    places = [(number, name) for number, call in enumerate(gold) for name in sorted(call.arguments)]
    generator.shuffle(places)
    for number, name in places:
        call = gold[number]
        values = _values(call, name, others, tools)
        if values:
            arguments = {**call.arguments, name: generator.choice(values)}
            return (*gold[:number], replace(call, arguments=arguments), *gold[number + 1 :])
    return None


def _values(call: Call, name: str, others: Sequence[Example], tools: Mapping[str, Tool]) -> list[Any]:
    """Other values of a call's argument: those of its list, of other rows, or a number beside it."""
    properties = tools[call.tool].parameters.get("properties", {}) if call.tool in tools else {}
    schema = properties.get(name)
    listed = list(schema.get("enum", ())) if isinstance(schema, Mapping) else []
    seen = [c.arguments[name] for o in others if o.answer for c in o.answer.calls if name in c.arguments]
    own = call.arguments[name]
    if isinstance(own, bool):
        listed.append(not own)
    elif isinstance(own, int | float):
        listed.append(own + 1)
    return [value for value in (listed or seen) if value != own]
