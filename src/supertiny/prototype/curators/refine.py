"""Has the teacher mend answers that the verifier failed or the votes doubt; keeps what the verifier then passes.

Paper: Madaan et al., Self-Refine, 2023, arXiv:2303.17651; Yue et al., Building a Family of Data Augmentation Models,
2024, arXiv:2412.04871 (refinement).
Use when: many labels fail the verifier; stands before `verified`, which would drop them.
Differs from the paper: the complaint is the verifier's own reason, and the verifier alone decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from supertiny.core.records import Answer, Example, Prompt, Sampling
from supertiny.core.scoring import exact
from supertiny.core.task import Task
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.curators._reasons import is_labelled


@dataclass(frozen=True)
class Refine:
    """An answer that is not mended stays as it was, failed; labelled rows are left alone."""

    tries: Annotated[int, Field(ge=1)] = 2
    """Times that the teacher is asked about a row, each with the newest complaint."""
    examples: Annotated[int, Field(ge=0)] = 8
    """Nearest labelled rows that are shown."""
    least_confidence: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of votes below which a passed answer is asked for again; 0 mends failed answers alone."""
    temperature: float = 0.3
    """Sampling temperature from the second try on; the first is greedy."""
    max_tokens: int = 128
    """Tokens that an answer may have."""

    needs: ClassVar[tuple[str, ...]] = ("live_teacher",)
    mends: ClassVar[bool] = True
    """The stage hands it unreadable answers too."""

    def model_calls(self, rows: Sequence[Example], calls_per_request: float) -> float:
        """Expected calls: one for each doubtful row; some are asked about again."""
        return float(sum(bool(self._complaint(row)) for row in rows))

    def curate(self, examples: Sequence[Example], task: Task, seed: int, *, bench: CuratorBench) -> list[Example]:
        rows = list(examples)
        todo = {place: said for place, row in enumerate(rows) if (said := self._complaint(row))}
        teacher = bench.teacher
        near = teacher.nearest.nearest([rows[place].request.text for place in todo], self.examples)
        labelled = teacher.nearest.examples
        shown = {p: tuple(labelled[i] for i, _ in reversed(found)) for p, found in zip(todo, near, strict=True)}
        traces = {place: _trace(rows[place], shown[place]) for place in todo}
        for attempt in range(self.tries):
            if not todo:
                break
            sampling = Sampling(self.max_tokens, self.temperature if attempt else 0.0, seed + attempt)
            prompts = [_again(traces[place], said, teacher) for place, said in todo.items()]
            tools = [teacher.tools_of(traces[place]) for place in todo]
            answered = teacher.call([traces[place] for place in todo], prompts, sampling, tools)
            for place, trace in zip(list(todo), answered, strict=True):
                traces[place] = trace
                complaint = self._judge(rows, place, trace, task, todo[place])
                if complaint:
                    todo[place] = complaint
                else:
                    del todo[place]
        return rows

    def _judge(self, rows: list[Example], place: int, trace: Trace, task: Task, said: str) -> str:
        """Puts a mended answer in its place, or gives the complaint about it."""
        row = rows[place]
        if trace.calls is None:
            return "this is not an answer in the format"
        verdict = task.verify(row.request, trace.calls)
        if verdict.outcome != "pass":
            return verdict.reason or "the call is not valid"
        old = row.answer or Answer()
        if old.readable and exact(trace.calls, old.calls, task.tool_map):
            return ""  # asked again, it says the same: nothing is mended, the doubt stays
        answer = Answer(trace.calls, trace.text, old.cost + trace.cost, old.by, None, trace.raw)
        refined = {"complaint": said, "before": [call.to_json() for call in old.calls]}
        provenance = {**row.provenance, "origin": row.request.id, "made_by": "refine", "refined": refined}
        rows[place] = replace(row, answer=answer, verdict=verdict, provenance=provenance)
        return ""

    def _complaint(self, row: Example) -> str:
        """Why a row is asked about again; nothing where it is not."""
        if is_labelled(row) or row.answer is None:
            return ""
        if not row.answer.readable:
            return "this is not an answer in the format"
        if row.verdict is not None and row.verdict.outcome == "fail":
            return row.verdict.reason or "the call is not valid"
        confidence = row.answer.confidence
        if confidence is not None and confidence < self.least_confidence:
            return "others read the request in another way; look at every word of it"
        return ""


def _trace(row: Example, shown: tuple[Example, ...]) -> Trace:
    answer = row.answer or Answer()
    return Trace(row.request, shown, calls=answer.calls, raw=answer.raw)


def _again(trace: Trace, complaint: str, teacher: Bench) -> Prompt:
    first = teacher.prompt(trace)
    said = trace.raw or teacher.form.write(Answer(trace.calls or (), trace.text))
    none = teacher.form.write(Answer())
    words = f"That is wrong: {complaint}. Write the right answer to the same request, or {none}."
    turns = ({"role": "assistant", "content": said}, {"role": "user", "content": words})
    return Prompt((*first.messages, *turns), shared=first.shared)
