"""One prompt that lists all functions and shows no example: the baseline.

Use when: you want to know what the model does unaided, or there is no labelled row to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from supertiny.core.protocols import Format
from supertiny.core.records import Answer, Completion, Prompt, Sampling, Tool
from supertiny.core.scoring import typed
from supertiny.prototype.bench import Bench, Trace, mean_logprob
from supertiny.prototype.prompting import plain_instructions


@dataclass(frozen=True)
class Plain:
    """One completion per request, under the format's grammar from its first token."""

    max_tokens: int = 128
    """Tokens that an answer may have."""

    calls_per_request = 1.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        form = bench.form
        tools = [bench.tools_of(trace) for trace in traces]
        words = [plain_instructions(bench.task.description, form, known) for known in tools]
        prompts = [
            Prompt(({"role": "system", "content": said}, *trace.request.messages), shared=1)
            for said, trace in zip(words, traces, strict=True)
        ]
        grammars = [form.grammar(known, bench.words) for known in tools]
        paid, done = bench.complete(traces, prompts, Sampling(self.max_tokens), grammars)
        return [
            replace(trace.answered(one.text, _read(one, form, known)), logprob=mean_logprob(one))
            for trace, one, known in zip(paid, done, tools, strict=True)
        ]


def _read(completion: Completion, form: Format, tools: Sequence[Tool]) -> Answer | None:
    """The answer, or None where it cannot be read. Words that were cut off are no call; calls that were, no answer."""
    try:
        read = typed(form.decode(completion.text.removesuffix(form.stop)), {tool.name: tool for tool in tools})
    except ValueError:
        return None
    return read if completion.finish == "stop" or not read.calls else None
