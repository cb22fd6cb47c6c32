"""What the teacher would take, said before anything is spent: calls, tokens, minutes, dollars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from supertiny.core.methods import build
from supertiny.core.nearest import NearestExamples
from supertiny.core.progress import Progress
from supertiny.core.records import Example, Price, Prompt
from supertiny.core.task import Task
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.prompting import function_list
from supertiny.prototype.settings import Settings

_BYTES_PER_TOKEN = 3.9  # of prompts made of English words, function names and JSON, by Qwen2.5's tokenizer
_SAMPLE = 100
# Tokens per second of a 1.5B model on two cores: what prompts and answers were measured at, in batches of 32.
_READ_PER_SECOND, _WRITTEN_PER_SECOND = 230.0, 70.0


@dataclass(frozen=True)
class Estimate:
    """Sums over one part of a run. `tokens_fresh` are those of tokens_in that no earlier prompt shares."""

    part: str
    calls: float
    tokens_in: float
    tokens_fresh: float
    tokens_out: float

    @property
    def minutes(self) -> float:
        """On two cores; hosted models answer as fast as their limits let them."""
        return (self.tokens_fresh / _READ_PER_SECOND + self.tokens_out / _WRITTEN_PER_SECOND) / 60

    def dollars(self, price: Price) -> float:
        cached = round(self.tokens_in - self.tokens_fresh) if price.dollars_per_million_cached else 0
        return price.dollars(round(self.tokens_in), round(self.tokens_out), cached, self.minutes * 60)


def estimates(settings: Settings, task: Task, on_test: Mapping[str, int] | None = None) -> list[Estimate]:
    """One estimate per part: plain prompt and pipeline on valid, the pipeline on the pool, and the report's share.

    `on_test`: requests of test that the report puts to "plain_prompt" and to "pipeline"; test itself is not opened,
    its rows are taken to be as long as those of valid.
    """
    on_test = on_test or {}
    form = build("formats", settings.format, "prototype.format")
    steps = [build("steps", block, "prototype.steps") for block in settings.steps]
    bench = Bench(_Nobody(), task, form, NearestExamples(task.labelled), 0)
    calls = sum(step.calls_per_request for step in steps)
    written = _mean([len(form.write(e.answer).encode()) for e in task.labelled if e.answer]) / _BYTES_PER_TOKEN + 2
    parts = []
    valid, pool = task.valid[: settings.valid_rows], task.unlabelled[: settings.pool_rows]
    for part, rows, count in (
        ("pipeline on valid", valid, len(valid)),
        ("labelling the pool", pool, len(pool)),
        ("pipeline on test", valid, on_test.get("pipeline", 0)),
    ):
        whole, fresh = _prompt_tokens(rows[:_SAMPLE], steps, bench)
        # Steps after the first find what it read in the cache.
        reads = count * fresh * max(1.0, calls - sum(step.calls_per_request >= 1 for step in steps) + 1)
        parts.append(Estimate(part, count * calls, count * calls * whole, reads, count * calls * written))
    parts.insert(0, _plain("plain prompt on valid", task, min(len(task.valid), settings.plain_rows)))
    parts.append(_plain("plain prompt on test", task, on_test.get("plain_prompt", 0)))
    return parts


def _plain(part: str, task: Task, count: int) -> Estimate:
    tools = len(function_list(task.tools).encode()) / _BYTES_PER_TOKEN if count else 0.0
    return Estimate(part, count, count * (tools + 120), tools + count * 30, count * 25)


def estimate(
    settings: Settings,
    task: Task,
    progress: Progress,
    on_test: Mapping[str, int] | None = None,
    dollars_per_hour: float = 0.0,
) -> None:
    """Prints the estimates and their sum; `on_test` as in `estimates`.

    `dollars_per_hour` is the machine's price, for engines that have none of their own. Raises UserError where
    nobody knows the price of a hosted model.
    """
    price = _price(settings.engine, dollars_per_hour)
    rows = estimates(settings, task, on_test)
    total = Estimate(
        "in all",
        *(sum(getattr(row, name) for row in rows) for name in ("calls", "tokens_in", "tokens_fresh", "tokens_out")),
    )
    progress.note("nothing was spent; model calls that the run's ledger already holds are not paid again")
    for row in [*rows, total]:
        progress.note(
            f"  {row.part:<24} {row.calls:7.0f} calls {row.tokens_in / 1000:9.0f} k tokens in "
            f"({row.tokens_fresh / 1000:.0f} k fresh) "
            f"{row.tokens_out / 1000:7.1f} k out {row.minutes:6.1f} min on two cores  ${row.dollars(price):.4f}"
        )


def _prompt_tokens(rows: Sequence[Example], steps: Sequence[Any], bench: Bench) -> tuple[float, float]:
    """Mean tokens of a prompt, whole and without what all prompts share."""
    traces = [Trace(row.request) for row in rows]
    for step in steps:
        if step.calls_per_request == 0:
            traces = step.run(traces, bench)
    prompts = [bench.prompt(trace) for trace in traces]
    return _mean([_bytes(p, 0) for p in prompts]) / _BYTES_PER_TOKEN, _mean(
        [_bytes(p, p.shared) for p in prompts]
    ) / _BYTES_PER_TOKEN


def _bytes(prompt: Prompt, first: int) -> int:
    # Each turn costs about five tokens of template.
    return sum(len(str(m.get("content")).encode()) + round(5 * _BYTES_PER_TOKEN) for m in prompt.messages[first:])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _price(engine: Any, dollars_per_hour: float) -> Price:
    """The engine's own price, or where it has none the machine's."""
    settings = build("engines", engine, "prototype.engine")
    if hasattr(settings, "price"):
        price: Price = settings.price()
        return price
    return Price(dollars_per_hour=getattr(settings, "dollars_per_hour", 0.0) or dollars_per_hour)


class _Nobody:
    """Stands where an engine would: an estimate asks none."""

    name = "nobody"
    price = Price()

    def complete(self, *_: Any) -> list[Any]:
        raise AssertionError("an estimate calls no model")

    def score(self, *_: Any) -> list[Any]:
        raise AssertionError("an estimate calls no model")

    def close(self) -> None:
        return None
