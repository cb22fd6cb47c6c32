"""Asks of each function that is called whether it does what the request asks; where no yes is likely, calls none.

Paper: Kadavath et al., Language Models (Mostly) Know What They Know, 2022, arXiv:2207.05221.
Use when: requests come that no function serves, and the model calls the nearest one all the same.
Differs from the paper: the probability from which calls stand is learned from labelled rows. One likely function lets
all calls stand, as a request is served or is not: see docs/log.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Annotated

from pydantic import Field

from supertiny.core.records import Completion, Message, Prompt, Sampling, Tool
from supertiny.prototype.bench import Bench, StepCost, Trace

_SYSTEM = "You judge whether a function does what a request asks for. Answer yes or no."
_SHOWN = 4  # questions about labelled rows that stand before each question, half of them with yes
_Question = tuple[Trace, Tool]


@dataclass(frozen=True)
class Relevance:
    """One token a function; by its log-probability, or by the word where the engine tells none.

    Where there are no labelled rows all calls stand.
    """

    rows: Annotated[int, Field(ge=1)] = 60
    """Labelled rows from which is learned when calls stand: of each a function that it calls and one that it does
    not. A right call that is dropped weighs as much as two wrong ones that stand."""

    calls_per_request = 1.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        done = list(traces)
        places = [place for place, trace in enumerate(traces) if trace.calls]
        known = _known(self.rows, bench)
        if not places or not known:
            return done
        shown = _turns(known[:_SHOWN])
        least: float = bench.shelf.once(f"{self} {bench.engine.name}", lambda: _least(known[_SHOWN:], shown, bench))
        asked = [(place, tool) for place in places for tool in _called(traces[place], bench)]
        paid, chances = _chances([(traces[place], tool) for place, tool in asked], shown, bench)
        likeliest = dict.fromkeys((place for place, _ in asked), 0.0)
        for (place, _), trace, chance in zip(asked, paid, chances, strict=True):
            spent = trace.spent - traces[place].spent + done[place].spent
            done[place] = replace(done[place], cost=spent.cost, asked=spent.calls)
            likeliest[place] = max(likeliest[place], chance)
        for place in (place for place, chance in likeliest.items() if chance < least):
            done[place] = replace(done[place], calls=(), results=(), planned=False)
        return done


def _called(trace: Trace, bench: Bench) -> list[Tool]:
    names = {call.tool for call in trace.calls or ()}
    return [tool for tool in bench.tools_of(trace) if tool.name in names]


def _known(count: int, bench: Bench) -> list[tuple[_Question, bool]]:
    """Questions about at most `count` labelled rows, drawn by seed, yes and no in turns as far as there are both."""
    generator = Random(bench.seed)
    rows = [row for row in bench.task.labelled if row.answer is not None]
    questions: dict[bool, list[_Question]] = {True: [], False: []}
    for row in generator.sample(rows, min(count, len(rows))):
        trace = Trace(row.request)
        names = {call.tool for call in row.answer.calls} if row.answer else set()
        for fits, found in questions.items():
            tools = [tool for tool in bench.tools_of(trace) if (tool.name in names) == fits]
            found += [(trace, generator.choice(tools))] if tools else []
    pairs = zip(questions[True], questions[False], strict=False)
    return [question for yes, no in pairs for question in ((yes, True), (no, False))]


def _turns(known: Sequence[tuple[_Question, bool]]) -> list[Message]:
    turns: list[Message] = []
    for question, fits in known:
        turns += [_asked(*question), {"role": "assistant", "content": "yes" if fits else "no"}]
    return turns


def _asked(trace: Trace, tool: Tool) -> Message:
    arguments = ", ".join(tool.parameters.get("properties", {}))
    words = f"Request: {trace.request.text}\nFunction: {tool.name}({arguments}): {tool.description}"
    return {"role": "user", "content": f"{words}\nDoes the function do what the request, or a part of it, asks for?"}


def _chances(questions: Sequence[_Question], shown: Sequence[Message], bench: Bench) -> tuple[list[Trace], list[float]]:
    """The traces with the price of their questions, and the probability of each yes."""
    before = ({"role": "system", "content": _SYSTEM}, *shown)
    prompts = [Prompt((*before, _asked(*question)), shared=len(before)) for question in questions]
    paid, done = bench.complete([trace for trace, _ in questions], prompts, Sampling(max_tokens=1))
    return paid, [_chance(completion) for completion in done]


def _chance(completion: Completion) -> float:
    chance = math.exp(min(0.0, completion.logprob)) if completion.logprob is not None else 1.0
    return chance if completion.text.strip().lower().startswith("yes") else 1.0 - chance


def _least(known: Sequence[tuple[_Question, bool]], shown: Sequence[Message], bench: Bench) -> float:
    """The lowest probability of those that decide the labelled rows' questions best; 0 where nothing is measured."""
    if not bench.spends:
        return 0.0
    paid, chances = _chances([question for question, _ in known], shown, bench)
    bench.shelf.pay("relevance: asking of labelled rows", sum((trace.spent for trace in paid), StepCost()))
    scored = [(chance, fits) for chance, (_, fits) in zip(chances, known, strict=True)]

    def loss(least: float) -> int:
        return sum(2 * (chance < least) if fits else chance >= least for chance, fits in scored)

    least = min([0.0, *sorted(chances)], key=loss)  # the first of equals is the lowest
    bench.note(f"  relevance: calls stand from a probability of {least:.2f}")
    return least
