"""Has the teacher mend answers that the verifier failed or the votes doubt; keeps what the verifier no longer fails.

Paper: Madaan et al., Self-Refine, 2023, arXiv:2303.17651; Yue et al., Building a Family of Data Augmentation Models,
2024, arXiv:2412.04871 (refinement).
Use when: many labels fail the verifier; stands before `verified`, which would drop them.
Differs from the paper: answers are mended, never requests; the complaint is the verifier's own reason, and it decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from supertiny.core.records import Answer, Example, Sampling
from supertiny.core.scoring import exact
from supertiny.core.task import Task
from supertiny.prototype.bench import Trace
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.curators._reasons import changed_by, is_labelled

_UNREADABLE = "this is not an answer in the format"


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
        """Expected calls: one for each doubtful row; some are asked about again. Of rows without answers, none."""
        return float(sum(bool(self._complaint(row)) for row in rows))

    def curate(self, examples: Sequence[Example], task: Task, seed: int, *, bench: CuratorBench) -> list[Example]:
        rows, teacher = list(examples), bench.teacher
        todo = {place: said for place, row in enumerate(rows) if (said := self._complaint(row))}
        near = teacher.nearest.nearest([rows[place].request.text for place in todo], self.examples)
        traces = {}
        for place, found in zip(todo, near, strict=True):
            old = rows[place].answer or Answer()
            shown = tuple(teacher.nearest.examples[other] for other, _ in reversed(found))
            traces[place] = Trace(rows[place].request, shown, raw=old.raw or teacher.form.write(old))
        for attempt in range(self.tries if todo else 0):
            sampling = Sampling(self.max_tokens, self.temperature if attempt else 0.0, seed + attempt)
            asked = [traces[place] for place in todo]
            prompts = [teacher.again(trace, said) for trace, said in zip(asked, todo.values(), strict=True)]
            answered = teacher.call(asked, prompts, sampling, [teacher.tools_of(trace) for trace in asked])
            left = {}
            for (place, said), trace in zip(todo.items(), answered, strict=True):
                traces[place] = trace
                rows[place], complaint = _mended(rows[place], trace, task, said)
                if complaint:
                    left[place] = complaint
            todo = left
            if not todo:
                break
        return rows

    def _complaint(self, row: Example) -> str:
        """Why a row is asked about again; nothing where it is not."""
        if is_labelled(row) or row.answer is None:
            return ""
        if not row.answer.readable:
            return _UNREADABLE
        if row.verdict is not None and row.verdict.outcome == "fail":
            return row.verdict.reason or "the call is not valid"
        confidence = row.answer.confidence
        if confidence is not None and confidence < self.least_confidence:
            return "others read the request in another way; look at every word of it"
        return ""


def _mended(row: Example, trace: Trace, task: Task, said: str) -> tuple[Example, str]:
    """The row with the trace's answer and no complaint, or the row itself and what is wrong with that answer."""
    if trace.calls is None:
        return row, _UNREADABLE
    verdict = task.verify(row.request, trace.calls)
    if verdict.outcome == "fail":  # "no call" is an answer too, of which the verifier abstains
        return row, verdict.reason or "the call is not valid"
    old = row.answer or Answer()
    if old.readable and exact(trace.calls, old.calls, task.tool_map):
        return row, ""  # asked again, it says the same: nothing is mended, the doubt stays
    answer = Answer(trace.calls, trace.text, old.cost + trace.cost, old.by, None, trace.raw)
    refined = {"complaint": said, "before": [call.to_json() for call in old.calls]}
    return replace(row, answer=answer, verdict=verdict, provenance=changed_by("refine", row, refined=refined)), ""
