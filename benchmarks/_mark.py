"""Has the model write the request again with every argument's value marked in it.

Paper: Paolini et al., Structured Prediction as Translation between Augmented Natural Languages, 2021, arXiv:2101.05779.
Use when: every value is copied from the request; the model then looks at each word, and code checks that none changed.
Differs from the paper: no training; the function's labelled rows stand in a prompt part that its requests share.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks._guess_function import name_of
from benchmarks._slots import STYLES
from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Call, Completion, Example, Message, Prompt, Sampling
from supertiny.prototype.bench import Bench, Trace

_TASKS = {
    "marked": "Write the user's request again, word for word, and mark the values of the arguments in it as "
    "[value](argument). Mark nothing else.",
    "listed": "List the arguments that the user's request states, in the order of the request, as argument: value; "
    "argument: value. Copy values word for word. Write - where it states none.",
}
_AGAIN = {
    "marked": "That is not the request word for word. Write the same words again, with the marks.",
    "listed": "A value is not in the request. Copy every value word for word.",
}


@dataclass(frozen=True)
class Mark:
    """One completion per request, and a second one where the first changed the request's words."""

    style: Literal["marked", "listed"] = "marked"
    """`marked` writes into the request; `listed` writes pairs in the request's order."""
    own_examples: bool = True
    """Whether all labelled rows of the request's function stand in the shared part of the prompt."""
    nearest: int = 4
    """Nearest rows that follow as turns; of the request's function where that is known."""
    guide: bool = True
    """Whether each argument is listed with the values that it has in the labelled rows."""
    check: bool = True
    """Whether a changed request is handed back once."""
    max_tokens: int = 128
    """Tokens that an answer may have."""

    calls_per_request = 1.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        prompts = self.prompts(traces, bench)
        sampling = Sampling(self.max_tokens, stop=("\n",))
        paid, done = bench.complete(traces, prompts, sampling)
        read = [self._read(trace, completion, bench) for trace, completion in zip(paid, done, strict=True)]
        broken = [place for place, trace in enumerate(read) if trace.calls is None] if self.check else []
        again = [self._again(prompts[place], read[place].raw) for place in broken]
        paid, done = bench.complete([read[place] for place in broken], again, sampling)
        for place, trace, completion in zip(broken, paid, done, strict=True):
            read[place] = self._read(trace, completion, bench)
        return read

    def prompts(self, traces: Sequence[Trace], bench: Bench) -> list[Prompt]:
        """System message (shared by the requests of a function), nearest rows as turns, the request."""
        groups: defaultdict[str, list[Example]] = defaultdict(list)
        for example in bench.task.labelled:
            groups[name_of(example)].append(example)
        tools = sorted({trace.tool or "" for trace in traces})
        rows = {tool: groups[tool] if tool else list(bench.task.labelled) for tool in tools}
        words = {tool: self._words(tool, rows[tool], bench) for tool in tools}
        indexes = {tool: NearestExamples(rows[tool]) for tool in tools}
        prompts = []
        for trace in traces:
            tool = trace.tool or ""
            ((*near,),) = indexes[tool].nearest([trace.request.text], self.nearest)
            turns: list[Message] = []
            for place, _ in reversed(near):
                example = rows[tool][place]
                written = self._write(example, bool(tool))
                turns += [*example.request.messages, {"role": "assistant", "content": written}]
            system = {"role": "system", "content": words[tool]}
            prompts.append(Prompt((system, *turns, *trace.request.messages), shared=1))
        return prompts

    def _words(self, tool: str, rows: Sequence[Example], bench: Bench) -> str:
        lines = [_TASKS[self.style]]
        if not tool:
            lines.append("Begin with the function's name and a colon.")
        for known in bench.task.tools:
            if tool in ("", known.name):
                lines += [
                    "",
                    f"Function {known.name}, arguments:",
                    *self._arguments(known.parameters, rows, known.name),
                ]
        if self.own_examples and tool:
            lines += ["", "Examples:", *(self._write(row, True) for row in rows)]
        return "\n".join(lines)

    def _arguments(self, schema: Mapping[str, Any], rows: Sequence[Example], tool: str) -> list[str]:
        names = list(schema.get("properties", {}))
        if not self.guide:
            return [", ".join(names)]
        seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            for call in row.answer.calls if row.answer else ():
                for slot, value in call.arguments.items() if call.tool == tool else ():
                    seen[slot][str(value)] += 1
        shown = {slot: [value for value, _ in seen[slot].most_common(6)] for slot in names}
        return [f"{slot}: {', '.join(values)}" if values else slot for slot, values in shown.items()]

    def _write(self, example: Example, is_routed: bool) -> str:
        call = example.answer.calls[0] if example.answer and example.answer.calls else Call("")
        written = STYLES[self.style][0](example.request.text, call.arguments)
        return written if is_routed else f"{call.tool}: {written}"

    def _again(self, prompt: Prompt, raw: str) -> Prompt:
        turns = ({"role": "assistant", "content": raw}, {"role": "user", "content": _AGAIN[self.style]})
        return Prompt((*prompt.messages, *turns), shared=prompt.shared)

    def _read(self, trace: Trace, completion: Completion, bench: Bench) -> Trace:
        tool, written = trace.tool or "", completion.text.strip()
        if not tool:
            tool, _, written = written.partition(":")
        known = bench.task.tool_map.get(tool)
        if known is None:
            return replace(trace, raw=completion.text, calls=None)
        slots = known.parameters.get("properties", {})
        found = STYLES[self.style][1](trace.request.text, written.strip(), slots)
        calls = None if found is None else (Call(tool, found),)
        return replace(trace, raw=completion.text, calls=calls)
