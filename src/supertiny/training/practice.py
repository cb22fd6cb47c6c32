"""What a learner needs that lets its pupil answer for itself: format, verifier, requests without gold, judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

from supertiny.core.methods import build
from supertiny.core.protocols import Engine, Format, Reward
from supertiny.core.records import Answer, Call, Request, Tool, Verdict
from supertiny.core.scoring import typed
from supertiny.training.lessons import Lesson


@dataclass(frozen=True)
class Sample:
    """One answer that a pupil wrote: its tokens, what they read as, and what the verifier says."""

    ids: tuple[int, ...]
    """Token ids of the answer, the stop token last where it was written."""
    logprobs: tuple[float, ...]
    """Natural-log probability of each, by the pupil that wrote it, at the temperature of the sampling."""
    text: str
    """Without the stop token."""
    answer: Answer | None
    """None where the text is not in the format, was cut off, or breaks off in what nobody can read."""
    verdict: Verdict
    """The one verifier's word; fail where there is no answer."""

    @property
    def readable(self) -> bool:
        return self.answer is not None


@dataclass(frozen=True)
class Practice:
    """The rules by which written answers are read and judged."""

    form: Format
    tools: Sequence[Tool]
    verify: Callable[[Request, Sequence[Call]], Verdict]
    """The task's verifier."""
    unanswered: Sequence[Lesson] = ()
    """Prompts of requests that have no trusted answer: `ids` are the prompt alone, `example.request` is theirs."""
    max_tokens: int = 96
    """Longest answer, in tokens."""
    open_engine: Callable[[Any], Engine] | None = None
    """Opens the engine of a recipe's block as the run pays for it; without it a reward opens its own."""

    def served(self, reward: Reward) -> Reward:
        """The same reward; what it or a reward within it asks is opened by `open_engine`, when it is first asked."""
        if self.open_engine is None or not is_dataclass(reward):
            return reward
        opened: dict[str, Any] = {}
        for setting in fields(reward):
            family, value = setting.metadata.get("family"), getattr(reward, setting.name)
            named = isinstance(value, str | Mapping)
            if family == "engines" and named:
                opened[setting.name] = partial(self.open_engine, value)
            elif family == "rewards":
                opened[setting.name] = self.served(build("rewards", value) if named else value)
        return replace(reward, **opened)

    def judged(self, request: Request, ids: Sequence[int], logprobs: Sequence[float], text: str, ended: bool) -> Sample:
        """What the tokens say as an answer to the request. An answer that did not end is none."""
        answer: Answer | None = None
        verdict = Verdict("fail", reason="the answer was cut off")
        if ended:
            try:
                tools = {tool.name: tool for tool in request.tools or self.tools}
                answer = typed(self.form.decode(text), tools)
            except ValueError as error:
                verdict = Verdict("fail", reason=f"not in the format: {error}")
            else:  # a ValueError of the task's own hook is its author's to see
                verdict = self.verify(request, answer.calls)
        return Sample(tuple(ids), tuple(logprobs), text, answer, verdict)
