"""What the teacher would take, said before anything is spent: calls, tokens, minutes, dollars.

Prompts are those that the steps would send for a sample of the rows. Their tokens are counted by the model's own
tokenizer where its file is on this machine. What the run's ledger holds of earlier calls corrects the rest: tokens of
prompts and answers, seconds, and where all were by the same steps the calls of a request. What is paid once for all
requests (measuring a judge, vectors of the labelled rows) is not in it, nor is what curators ask that score texts or
mend answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from supertiny.core.ledger import Ledger
from supertiny.core.methods import build, own_methods
from supertiny.core.nearest import NearestExamples
from supertiny.core.progress import Progress
from supertiny.core.records import Example, Price, Prompt
from supertiny.core.run import Run
from supertiny.core.task import STEPS, Task
from supertiny.engines._gguf_tokens import token_counter
from supertiny.prototype.curating import curators_of, teacher_calls
from supertiny.prototype.demands import _model_file
from supertiny.prototype.rehearsal import Count, StepCalls, price_of_engine, prompt_tokens, rehearse
from supertiny.prototype.settings import Settings
from supertiny.prototype.steps.plain import Plain

_BYTES_PER_TOKEN = 3.9  # of prompts made of English words, function names and JSON, by Qwen2.5's tokenizer
_SAMPLE = 100
_READ_BACK = 500  # of the ledger's calls
# Tokens per second of a 1.5B model on two cores: what prompts and answers were measured at, in batches of 32.
_READ_PER_SECOND, _WRITTEN_PER_SECOND = 230.0, 70.0
_SAME_FRESH = 0.1  # of a prompt that an earlier step has sent too: what is not found in the cache
_PURPOSES = {"plain": "plain", "pipeline": "pipeline on"}


@dataclass(frozen=True)
class Estimate:
    """Sums over one part of a run. `tokens_fresh` are those of tokens_in that no earlier prompt shares."""

    part: str
    calls: float
    tokens_in: float
    tokens_fresh: float
    tokens_out: float
    seconds: float | None = None
    """By earlier calls of this run; unknown before the first."""
    tokens_cached: float = 0.0
    """That a server is expected to bill as cached; by earlier calls of this run."""
    dollars: float = 0.0

    @property
    def minutes(self) -> float:
        """As measured, or as on two cores: hosted models answer as fast as their limits let them."""
        if self.seconds is not None:
            return self.seconds / 60
        return _seconds(self.tokens_fresh, self.tokens_out) / 60

    def __add__(self, other: Estimate) -> Estimate:
        known = self.seconds is not None or other.seconds is not None
        return Estimate(
            self.part,
            self.calls + other.calls,
            self.tokens_in + other.tokens_in,
            self.tokens_fresh + other.tokens_fresh,
            self.tokens_out + other.tokens_out,
            60 * (self.minutes + other.minutes) if known else None,
            self.tokens_cached + other.tokens_cached,
            self.dollars + other.dollars,
        )


@dataclass(frozen=True)
class _Earlier:
    """What the ledger's calls of one kind of prompt were like."""

    read_ratio: float
    """Tokens that the engine read over those that are counted here."""
    written_ratio: float
    """The same of the tokens that it wrote."""
    seconds_ratio: float
    """Its seconds over those that these tokens are taken to need."""
    cached_share: float
    tokens_out: float
    """Of a mean call."""
    seconds: float
    """Of a mean call."""
    calls_per_request: float
    """0 where the calls were not all by these very steps: then their number and length tell nothing."""


def estimates(
    settings: Settings,
    task: Task,
    on_test: Mapping[str, int] | None = None,
    ledger: Ledger | None = None,
    count: Count | None = None,
    dollars_per_hour: float = 0.0,
) -> list[Estimate]:
    """One estimate per part: plain prompt and pipeline on valid, the pipeline on the pool, and the report's share.

    Curators that say how often they will ask the teacher are a part too; their calls are taken to be the pipeline's.

    `on_test`: requests of test that the report puts to "plain_prompt" and to "pipeline"; test itself is not opened,
    its rows are taken to be as long as those of valid. `count` counts a text's tokens in place of the model's own
    tokenizer.
    """
    on_test = on_test or {}
    count = cache(count or _counter(settings.engine))  # prompts share their first message
    valid, pool = task.valid[: settings.valid_rows], task.unlabelled[: settings.pool_rows]
    plain_rows = valid[: settings.plain_rows]
    form = build("formats", settings.format, "prototype.format")
    plain_form = build("formats", settings.plain_format, "prototype.plain_format")
    own = own_methods("steps", task.folder / STEPS)
    steps = [build("steps", block, f"prototype.steps.{n}", own) for n, block in enumerate(settings.steps)]
    told = replace(task, description=settings.wording) if settings.wording else task
    nearest, price = NearestExamples(task.labelled), price_of_engine(settings.engine, dollars_per_hour)
    on_valid, on_pool = (rehearse(_spread(rows), steps, told, form, nearest, count) for rows in (valid, pool))
    plain = rehearse(_spread(plain_rows), [Plain()], task, plain_form, NearestExamples(()), count)
    led = _earlier(ledger, "pipeline", settings, task, count) if ledger else None
    simple = _earlier(ledger, "plain", settings, task, count) if ledger else None
    asked = on_pool or on_valid
    shared = any(step.price is not None and step.tokens_out for step in asked)  # not every request comes to our engine
    if led and ledger and (shared or not ledger.holds_only([settings.steps, settings.format])):
        led = replace(led, calls_per_request=0.0)
    each = sum(step.calls for step in asked)
    more = teacher_calls(curators_of(settings), [*task.labelled, *pool], each) / each if each else 0.0
    parts = [
        _part("plain prompt on valid", plain, len(plain_rows), simple, price),
        _part("pipeline on valid", on_valid, len(valid), led, price),
        _part("labelling the pool", on_pool, len(pool), led, price),
        _part("pipeline on test", on_valid, on_test.get("pipeline", 0), led, price),
        _part("plain prompt on test", plain, on_test.get("plain_prompt", 0), simple, price),
    ]
    return [*parts, _part("curators", asked, more, led, price)] if more else parts


def _part(part: str, asked: Sequence[StepCalls], number: float, earlier: _Earlier | None, price: Price) -> Estimate:
    """Estimate of `number` requests of which each asks what `asked` says, corrected by what earlier ones did.

    `price` is that of the pipeline's own engine; the others' calls stay as they were rehearsed.
    """
    own = [step for step in asked if step.price is None and not step.scored]
    whole = _of_own(part, own, number, earlier, price)
    for step in asked:
        if step.price is not None or step.scored:
            whole += _beside(part, step, number, earlier, price)
    return whole


def _beside(part: str, step: StepCalls, number: float, earlier: _Earlier | None, price: Price) -> Estimate:
    """Estimate of scores, and of what another engine than the pipeline's own does."""
    calls, tokens_in, tokens_out = (number * each for each in _of_one_request([step]))
    if step.price is None and earlier is not None:
        tokens_in *= earlier.read_ratio
    billed = step.price or price
    if step.scored and not billed.dollars_per_million_out:
        tokens_out = 0.0  # engines of ours write nothing where they score
    found = Estimate(part, calls, tokens_in, number * step.calls * step.fresh, tokens_out)
    return replace(found, dollars=billed.dollars(round(tokens_in), round(tokens_out), 0, found.minutes * 60))


def _of_own(part: str, own: Sequence[StepCalls], number: float, earlier: _Earlier | None, price: Price) -> Estimate:
    """Estimate of what the pipeline's own engine writes for `number` requests."""
    calls, tokens_in, tokens_out = _of_one_request(own)
    seconds, cached = None, 0.0
    if earlier is not None:
        more = earlier.calls_per_request / calls if calls else 0.0
        if more:
            calls, tokens_in = calls * more, tokens_in * more * earlier.read_ratio
            tokens_out, seconds = calls * earlier.tokens_out, number * calls * earlier.seconds
        else:
            tokens_in, tokens_out = tokens_in * earlier.read_ratio, tokens_out * earlier.written_ratio
            seconds = number * earlier.seconds_ratio * _seconds(tokens_in, tokens_out)
        cached = number * tokens_in * earlier.cached_share
    whole = Estimate(
        part, number * calls, number * tokens_in, number * _fresh(own), number * tokens_out, seconds, cached
    )
    tokens = round(whole.tokens_in), round(whole.tokens_out), round(cached)
    return replace(whole, dollars=price.dollars(*tokens, whole.minutes * 60))


def _seconds(tokens_read: float, tokens_written: float) -> float:
    """What two cores take for so many tokens."""
    return tokens_read / _READ_PER_SECOND + tokens_written / _WRITTEN_PER_SECOND


def _of_one_request(asked: Sequence[StepCalls]) -> tuple[float, float, float]:
    """Calls, tokens in and tokens out."""
    return (
        sum(step.calls for step in asked),
        sum(step.calls * step.tokens_in for step in asked),
        sum(step.calls * step.tokens_out for step in asked),
    )


def _fresh(asked: Sequence[StepCalls]) -> float:
    """Tokens of one request that are computed: a later step finds what an earlier one has read."""
    calling = [step for step in asked if step.calls]
    if not calling:
        return 0.0
    first, *later = calling
    more = (step.calls * max(step.tokens_in - first.tokens_in, _SAME_FRESH * first.fresh) for step in later)
    return first.fresh * max(1.0, first.calls) + sum(more)


def _spread(rows: Sequence[Example]) -> list[Example]:
    """At most a hundred rows, from all over."""
    return list(rows[:: max(1, -(-len(rows) // _SAMPLE))])


def _counter(engine: Any) -> Count:
    """Counts tokens by the tokenizer in the model's file; by bytes where the file is not on this machine."""
    settings = build("engines", engine, "prototype.engine")
    file = None if hasattr(settings, "base_url") else _model_file(str(getattr(settings, "model", "")))
    counted = token_counter(file) if file is not None and file.is_file() else None
    return counted or (lambda text: len(text.encode(errors="replace")) / _BYTES_PER_TOKEN)


def _earlier(ledger: Ledger, kind: str, settings: Settings, task: Task, count: Count) -> _Earlier | None:
    """What the ledger knows of this kind of call of this model; None where it knows too little."""
    engine = build("engines", settings.engine, "prototype.engine")
    model = str(getattr(engine, "model", ""))
    model = f":{model}:" if hasattr(engine, "base_url") else Path(model).name  # as engines name themselves
    found = ledger.ask(
        "SELECT prompt, tokens_in, tokens_out, tokens_cached, seconds, json_extract(completion, '$.text') FROM calls"
        " WHERE substr(purpose, 1, length(?)) = ? AND instr(engine, ?) > 0 AND tokens_out > 0"
        " AND json_extract(completion, '$.scored') IS NULL ORDER BY rowid DESC",
        (_PURPOSES[kind], _PURPOSES[kind], model),
    )
    if len(found) < min(20, len(task.valid)):
        return None
    prompts = [json.loads(row[0]) for row in found]
    counted = sum(prompt_tokens(Prompt(tuple(p["messages"]), p["text"]), count) for p in prompts[:_READ_BACK])
    texts_counted = sum(count(row[5]) + 1 for row in found[:_READ_BACK])
    read, written, cached, seconds = (sum(row[place] for row in found[:_READ_BACK]) for place in (1, 2, 3, 4))
    texts = {row.request.text for row in (*task.valid, *task.unlabelled)}
    asked = [text for prompt in prompts if (text := _request_in(prompt, texts)) is not None]
    number = min(_READ_BACK, len(found))
    return _Earlier(
        read_ratio=read / counted if counted and read else 1.0,
        written_ratio=written / texts_counted,
        seconds_ratio=seconds / _seconds(read, written),
        cached_share=cached / read if read else 0.0,
        tokens_out=written / number,
        seconds=seconds / number,
        calls_per_request=len(asked) / max(1, len(set(asked))),
    )


def _request_in(prompt: Mapping[str, Any], texts: set[str]) -> str | None:
    """The row's request in a prompt, which may have further turns after it."""
    said = (str(turn.get("content")) for turn in reversed(prompt["messages"]) if turn.get("role") == "user")
    return next((text for text in said if text in texts), None)


def estimate(
    settings: Settings,
    task: Task,
    progress: Progress,
    on_test: Mapping[str, int] | None = None,
    ledger_file: Path | None = None,
    dollars_per_hour: float = 0.0,
) -> None:
    """Prints the estimates and their sum; `on_test` as in `estimates`. A ledger of earlier calls makes them better.

    `dollars_per_hour` is the machine's price, for engines that have none of their own. Raises UserError where nobody
    knows the price of a hosted model.
    """
    ledger = Ledger(ledger_file) if ledger_file is not None and ledger_file.is_file() else None
    try:
        rows = estimates(settings, task, on_test, ledger, dollars_per_hour=dollars_per_hour)
    finally:
        if ledger is not None:
            ledger.close()
    progress.note("nothing was spent; model calls that the run's ledger already holds are not paid again")
    for row in [*rows, replace(_sum(rows), part="in all")]:
        where = "as measured" if row.seconds is not None else "on two cores"
        progress.note(
            f"  {row.part:<24} {row.calls:7.0f} calls {row.tokens_in / 1000:9.0f} k tokens in "
            f"({row.tokens_fresh / 1000:.0f} k fresh) "
            f"{row.tokens_out / 1000:7.1f} k out {row.minutes:6.1f} min {where}  ${row.dollars:.4f}"
        )
    unknown = [
        name
        for name, curator in curators_of(settings).items()
        if {"live_teacher", "token_scores"} & set(getattr(curator, "needs", ()))
        and not teacher_calls({name: curator}, task.labelled, 1.0)
    ]
    if unknown:
        progress.note(f"  not in it: what the curators {', '.join(unknown)} ask a model")


def say_corrected(settings: Settings, run: Run) -> None:
    """Prints what the whole stage will take by what its calls took so far, and how much of that is spent."""
    rows = [row for row in estimates(settings, run.task, None, run.ledger) if row.calls]
    bills = [bill for purpose in _PURPOSES.values() for bill in run.ledger.bills(purpose)]
    calls, dollars = sum(bill.calls for bill in bills), sum(bill.dollars for bill in bills)
    lost = sum(bill.dollars for bill in run.ledger.lost() if bill.purpose.startswith(tuple(_PURPOSES.values())))
    whole = _sum(rows)
    run.progress.note(
        f"  by {calls} calls so far the stage takes about {whole.calls:.0f} calls, "
        f"{(whole.tokens_in + whole.tokens_out) / 1000:.0f} k tokens, {whole.minutes:.1f} min, "
        f"${whole.dollars:.4f}; ${dollars:.4f} of it is spent"
        + (f", and at most ${lost:.4f} more on tries without an answer" if lost else "")
    )


def _sum(rows: Sequence[Estimate]) -> Estimate:
    first, *others = rows
    for row in others:
        first = first + row
    return first
