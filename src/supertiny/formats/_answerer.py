"""A model behind a format, as an answerer: what the student, the artifact and the labelled-only student are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from supertiny.core.protocols import Engine, Format
from supertiny.core.records import Answer, Completion, Cost, Grammar, Request, Sampling, Tool


class ModelAnswerer:
    """Requests -> prompts -> completions -> answers.

    Text that the format cannot read, and calls that were cut off, give an answer without calls; `raw` keeps the text.
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
        """`constrained` holds the model to the format's grammar of the tools."""
        self.name = name
        self._engine = engine
        self._format = format
        self._tools = tuple(tools.values()) if isinstance(tools, Mapping) else tuple(tools)
        self._sampling = Sampling(max_tokens=max_tokens, stop=(format.stop,))
        self._constrained = constrained
        self._grammar = format.grammar(self._tools) if constrained else None

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in order, all in one batch of the engine."""
        prompts = [self._format.encode(request, request.tools or self._tools) for request in requests]
        grammars = [self._grammar_for(request) for request in requests] if self._constrained else None
        return [self._read(written) for written in self._engine.complete(prompts, self._sampling, grammars)]

    def _grammar_for(self, request: Request) -> Grammar | None:
        return self._format.grammar(request.tools) if request.tools else self._grammar

    def _read(self, written: Completion) -> Answer:
        tokens = written.tokens_in, written.tokens_out, written.tokens_cached
        dollars = self._engine.price.dollars(*tokens, seconds=written.seconds)
        cost = Cost(dollars, written.seconds, *tokens)
        confidence = None
        if written.logprob is not None:
            confidence = math.exp(min(0.0, written.logprob / max(written.tokens_out, 1)))
        text = written.text.removesuffix(self._format.stop)
        try:
            read = self._format.decode(text)
        except ValueError:
            return Answer((), "", cost, self.name, confidence, written.text)
        calls = read.calls if written.finish == "stop" else ()
        return Answer(calls, read.text, cost, self.name, confidence, written.text)
