"""A model behind a format, as an answerer: what the student, the artifact and the labelled-only student are."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from supertiny.core.protocols import Engine, Format
from supertiny.core.records import Answer, Completion, Cost, Request, Sampling, Tool
from supertiny.core.scoring import typed
from supertiny.core.verifying import schema_problem
from supertiny.formats._lawful import complete_lawfully


class ModelAnswerer:
    """Requests -> prompts -> completions -> answers.

    Text that the format cannot read, and calls that were cut off or that the schema refuses where the answerer is
    `constrained`, give an answer without calls; `raw` keeps the text.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        format: Format,
        tools: Sequence[Tool] | Mapping[str, Tool],
        max_tokens: int = 96,
        constrained: bool = True,
    ) -> None:
        """`constrained` holds the model to the format's grammar of the tools.

        Seconds of an answer are its share of the batch.
        """
        self.name = name
        self._engine = engine
        self._format = format
        self._tools = tuple(tools.values()) if isinstance(tools, Mapping) else tuple(tools)
        self._sampling = Sampling(max_tokens=max_tokens, stop=(format.stop,))
        self._constrained = constrained

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in order, all in one batch of the engine."""
        tools = [request.tools or self._tools for request in requests]
        prompts = [self._format.encode(request, known) for request, known in zip(requests, tools, strict=True)]
        began = time.perf_counter()
        if self._constrained:
            done = complete_lawfully(self._engine, prompts, self._sampling, self._format, tools)
        else:
            done = self._engine.complete(prompts, self._sampling)
        share = (time.perf_counter() - began) / max(1, len(done))
        return [self._read(written, share, known) for written, known in zip(done, tools, strict=True)]

    def _read(self, written: Completion, seconds: float, tools: Sequence[Tool]) -> Answer:
        tokens = written.tokens_in, written.tokens_out, written.tokens_cached
        dollars = self._engine.price.dollars(*tokens, seconds=seconds)
        cost = Cost(dollars, seconds, *tokens)
        confidence = None
        if written.logprob is not None:
            mean = written.logprob / max(written.tokens_out, 1)
            # What is no log-probability, NaN too, must not pass for a sure answer.
            confidence = math.exp(min(0.0, mean)) if mean < math.inf else 0.0
        text = written.text.removesuffix(self._format.stop)
        known = {tool.name: tool for tool in tools}
        try:
            read = typed(self._format.decode(text), known)
        except ValueError:
            return Answer((), "", cost, self.name, confidence, written.text, readable=False)
        if self._constrained and any(schema_problem(call, known) for call in read.calls):
            # What no grammar can say (a range too long to spell, a pattern): such a call must not be carried out.
            return Answer((), "", cost, self.name, confidence, written.text, readable=False)
        whole = written.finish == "stop" or not read.calls
        calls = read.calls if whole else ()
        return Answer(calls, read.text, cost, self.name, confidence, written.text, whole)
