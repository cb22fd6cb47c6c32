"""A language model judges the answer by written guidelines, after its agreement with gold was measured.

Paper: Zheng et al., Judging LLM-as-a-Judge, 2023, arXiv:2306.05685; guidelines as data are those of U-CoT+, 2025,
arXiv:2506.08477.
Use when: what makes an answer right can be said in words, and no code can check it.
Differs from the paper: single answers are passed or failed, and the reason for a failure is handed back once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.core.records import Sampling, Verdict
from supertiny.core.task import GUIDELINES
from supertiny.prototype.agreement import Agreement, measure_agreement
from supertiny.prototype.bench import Bench, StepCost, Trace
from supertiny.prototype.steps._judging import GRAMMAR, judgement_prompt, read_judgement


@dataclass(frozen=True)
class Judge:
    """Passes or fails each readable answer; one that stays failed keeps its calls with confidence 0.

    First it is shown gold and wrong answers of labelled rows; where it agrees too little, all answers stay as they are.
    A judgement that cannot be read abstains.
    """

    guidelines: str = ""
    """What makes an answer right; guidelines.md in the task's folder where it is empty."""
    engine: Any = field(default=None, metadata={"family": "engines"})
    """What runs the judge; the pipeline's own engine where it is not given."""
    least_kappa: Annotated[float, Field(ge=-1, le=1)] = 0.4
    """Cohen's kappa with gold from which the judge is trusted."""
    measured_rows: Annotated[int, Field(ge=1)] = 30
    """Labelled rows on which that is measured, each with its gold answer and a wrong one."""
    hand_back: bool = True
    """Whether the reason for a failure is handed back once; the second answer counts if verifier and judge pass it."""
    max_tokens: int = 96
    """Tokens that a judgement may have, and a second answer."""

    @property
    def calls_per_request(self) -> float:
        return 1.5 if self.hand_back else 1.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        if not traces:
            return []
        # An estimate measures nothing: it wants to know what judging takes.
        if bench.spends and (agreement := self._agreement(bench)).kappa < self.least_kappa:
            note = f"judge: not trusted, kappa {agreement.kappa:.2f} is under {self.least_kappa:g}"
            return [trace.noted(note) for trace in traces]
        judged, verdicts = self._judged(traces, bench)
        failed = [place for place, verdict in enumerate(verdicts) if verdict.outcome == "fail"]
        second = self._second([judged[p] for p in failed], [verdicts[p] for p in failed], bench)
        for place, trace in zip(failed, second, strict=True):
            judged[place] = trace
        return judged

    def _second(self, traces: Sequence[Trace], verdicts: Sequence[Verdict], bench: Bench) -> list[Trace]:
        """The failed traces with their second answer where that passes; else with confidence 0."""
        failed = [
            replace(trace, confidence=0.0).noted(f"judge: fail: {verdict.reason}")
            for trace, verdict in zip(traces, verdicts, strict=True)
        ]
        if not self.hand_back or not failed:
            return failed
        reasons = [verdict.reason.strip().rstrip(".") for verdict in verdicts]
        prompts = [bench.again(trace, reason) for trace, reason in zip(traces, reasons, strict=True)]
        drawn = bench.call(traces, prompts, Sampling(self.max_tokens), [bench.tools_of(t) for t in traces])
        open_ = [place for place, trace in enumerate(drawn) if not bench.complaint(trace)]
        again, second = self._judged([drawn[place] for place in open_], bench)
        for place, trace in zip(open_, again, strict=True):
            drawn[place] = trace
        passed = {place for place, verdict in zip(open_, second, strict=True) if verdict.outcome == "pass"}
        return [
            replace(new, tool=None, candidates=()).noted(f"judge: handed back: {verdict.reason}")
            if place in passed
            else old.billed_as(new)
            for place, (old, new, verdict) in enumerate(zip(failed, drawn, verdicts, strict=True))
        ]

    def _judged(self, traces: Sequence[Trace], bench: Bench) -> tuple[list[Trace], list[Verdict]]:
        """The traces with the price of the judgement, and a verdict on each; an unreadable answer gets none."""
        places = [place for place, trace in enumerate(traces) if trace.calls is not None]
        words = self._guidelines(bench)
        prompts = [judgement_prompt(traces[place], words, bench) for place in places]
        paid, done = bench.on(self.engine).complete(
            [traces[place] for place in places], prompts, Sampling(self.max_tokens), [GRAMMAR] * len(places)
        )
        judged, verdicts = list(traces), [Verdict("abstain", 0.0, "no answer to judge")] * len(traces)
        for place, trace, completion in zip(places, paid, done, strict=True):
            judged[place], verdicts[place] = trace, read_judgement(completion)
        return judged, verdicts

    def _agreement(self, bench: Bench) -> Agreement:
        words = self._guidelines(bench)

        def measure() -> Agreement:
            found, paid = measure_agreement(
                lambda traces: self._judged(traces, bench),
                bench.task.labelled,
                bench.task,
                bench.seed,
                self.measured_rows,
            )
            bench.shelf.pay("judge: measuring its agreement", sum((trace.spent for trace in paid), StepCost()))
            trusted = "trusted" if found.kappa >= self.least_kappa else "not trusted: all answers stay as they are"
            bench.note(f"  judge on labelled rows: {found}; {trusted}")
            return found

        agreement: Agreement = bench.shelf.once(f"agreement {bench.engine.name} {self} {words}", measure)
        return agreement

    def _guidelines(self, bench: Bench) -> str:
        path = bench.task.folder / GUIDELINES
        words = self.guidelines or (path.read_text(encoding="utf-8") if path.is_file() else "")
        if not words.strip():
            raise UserError("the judge has no guidelines", f"write {path}, or set `guidelines`")
        return words.strip()
