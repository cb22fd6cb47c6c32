"""Has the model write the request again with the values of a call's arguments marked in it, instead of writing values.

Paper: Paolini et al., Structured Prediction as Translation between Augmented Natural Languages, 2021, arXiv:2101.05779.
Use when: values are copied from the request (slots, spans); code then checks that no word was changed.
Differs from the paper: no training; labelled rows of the functions in question stand in a part that prompts share.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from supertiny.core.records import Answer, Call, Completion, Example, Message, Prompt, Sampling, Tool
from supertiny.core.scoring import typed
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.prompting import going_on
from supertiny.prototype.steps._held_out import own_rows, part_of
from supertiny.prototype.steps._spans import as_listed, marked, read_marked

_NONE = "none"
_VALUES = 6  # of each argument, as labelled rows have them
_RULES = (
    "Do that by writing the request again, word for word, after the function's name and a colon, with the values of "
    f"its arguments marked as [value](argument). Mark nothing else. Write {_NONE} where no function serves the request."
)
_SEVERAL = "Where a request needs several calls, write it once for each, a line each, with this call's values marked."
_AGAIN = "That is wrong: it is not the request word for word. Write the same words again, with the marks."


@dataclass(frozen=True)
class Mark:
    """One completion per request, and a second one where the first says something else than the request.

    The examples that `retrieve` found stand last, as turns, where they are of the functions in question. An answer
    that was there before stays where it has several calls, or the second completion cannot be read either.
    """

    examples: int = 32
    """Labelled rows of the functions in question that stand in the shared part of the prompt."""
    max_tokens: int = 128
    """Tokens that an answer may have."""

    calls_per_request = 1.05

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        done = list(traces)
        places = [place for place, trace in enumerate(traces) if trace.tool != "" and len(trace.calls or ()) < 2]
        prompts = self._prompts([traces[place] for place in places], bench)
        sampling = Sampling(self.max_tokens, stop=("\n\n",))  # calls stand on a line each
        for _ in range(2 if bench.spends else 1):
            paid, written = bench.complete([done[place] for place in places], prompts, sampling)
            found = [_read(trace, one, bench) for trace, one in zip(paid, written, strict=True)]
            for place, trace, one, answer in zip(places, paid, written, found, strict=True):
                unread = answer is None and trace.calls is not None
                done[place] = trace if unread else trace.answered(one.text, answer)
            left = [number for number, answer in enumerate(found) if answer is None]
            prompts = [going_on(prompts[number], written[number].text, _AGAIN) for number in left]
            places = [places[number] for number in left]
        return done

    def _prompts(self, traces: Sequence[Trace], bench: Bench) -> list[Prompt]:
        rows = own_rows(bench)
        parts = part_of(rows, bench.seed)
        systems: dict[tuple[tuple[str, ...], int | None, bool], str] = {}
        prompts = []
        for trace in traces:
            tools, is_own = _tools(trace, bench), bool(trace.request.tools)
            names, part = tuple(tool.name for tool in tools), parts.get(trace.request.id)
            if is_own or (names, part, is_own) not in systems:
                # A labelled row sees those of other parts, so that rows of one part share a prompt.
                seen = [] if is_own else [row for row in _of(rows, names) if parts[row.request.id] != part]
                systems[names, part, is_own] = self._system(tools, seen, bench)
            turns: list[Message] = []
            for row in _of(trace.examples, names):
                turns += [*row.request.messages, {"role": "assistant", "content": _written(row)}]
            system = {"role": "system", "content": systems[names, part, is_own]}
            prompts.append(Prompt((system, *turns, *trace.request.messages), shared=1))
        return prompts

    def _system(self, tools: Sequence[Tool], rows: Sequence[Example], bench: Bench) -> str:
        lines = [bench.task.description.strip(), _RULES, _SEVERAL]
        for tool in tools:
            about = f": {tool.description.strip()}" if tool.description else ""
            lines += ["", f"Function {tool.name}{about}", "Arguments:", *_arguments(tool, rows)]
        shown = _evenly(rows, self.examples)
        return "\n".join([*lines, *(["", "Examples:", *map(_written, shown)] if shown else [])])


def _tools(trace: Trace, bench: Bench) -> list[Tool]:
    names = (trace.tool,) if trace.tool else trace.candidates
    return [tool for tool in bench.tools_of(trace) if not names or tool.name in names]


def _of(rows: Sequence[Example], names: Sequence[str]) -> list[Example]:
    """Rows that call none but these functions, or none at all."""
    return [row for row in rows if row.answer and {call.tool for call in row.answer.calls} <= set(names)]


def _evenly(rows: Sequence[Example], count: int) -> list[Example]:
    """At most so many rows, of each function equally many as far as there are."""
    seen: Counter[tuple[str, ...]] = Counter()
    turns = []
    for place, row in enumerate(rows):
        tools = tuple(call.tool for call in row.answer.calls) if row.answer else ()
        turns.append((seen[tools], place))
        seen[tools] += 1
    return [rows[place] for place in sorted(place for _, place in sorted(turns)[:count])]


def _arguments(tool: Tool, rows: Sequence[Example]) -> list[str]:
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for call in (call for row in rows if row.answer for call in row.answer.calls if call.tool == tool.name):
        for name, value in call.arguments.items():
            seen[name][str(value)] += 1
    schemas: Mapping[str, object] = tool.parameters.get("properties", {})
    shown = {name: [value for value, _ in seen[name].most_common(_VALUES)] for name in schemas}
    return [f"{name}: {', '.join(values)}" if values else name for name, values in shown.items()]


def _written(row: Example) -> str:
    calls = row.answer.calls if row.answer else ()
    return "\n".join(f"{call.tool}: {marked(row.request.text, call.arguments)}" for call in calls) or _NONE


def _read(trace: Trace, completion: Completion, bench: Bench) -> Answer | None:
    """The calls of known functions; None where it was cut off, or says something else than the request."""
    known = {tool.name: tool for tool in _tools(trace, bench)}
    lines = completion.text.strip().splitlines()
    if lines == [_NONE]:
        return Answer()
    calls = []
    for line in lines:
        name, _, words = line.partition(": ")
        found = read_marked(trace.request.text, words)
        if completion.finish != "stop" or name not in known or found is None:
            return None
        schemas = known[name].parameters.get("properties", {})
        values = {slot: as_listed(text, schemas[slot]) for slot, text in found.items() if slot in schemas}
        calls.append(Call(name, values))
    return typed(Answer(tuple(calls)), known) if calls else None
