"""task + language model -> measured teacher pipeline -> verified examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.files import write_rows
from supertiny.core.protocols import Engine
from supertiny.core.records import Answer, Example, Tool, Verdict
from supertiny.core.run import Run
from supertiny.core.scoring import is_exact, wilson_interval
from supertiny.prototype.bench import Shelf, Trace
from supertiny.prototype.curating import asks_teacher, curate, curators_of, stored
from supertiny.prototype.estimate import say_corrected
from supertiny.prototype.settings import Settings
from supertiny.prototype.teacher import Pipeline, open_engine, pipeline_of, plain_of


def run(settings: Settings, run: Run, folder: Path) -> dict[str, Any]:
    """Measures plain prompt and pipeline on valid, labels the pool, curates.

    Writes train, pool, valid and rejected rows.
    """
    curators = curators_of(settings)
    run.progress.note(f"loading the teacher's model {settings.engine}")
    with closing(Shelf()) as shelf, ExitStack() as opened:
        engine = open_engine(settings)
        opened.callback(engine.close)
        measured, spent = _measure(settings, run, engine, folder, shelf)
        pool, spent_on_pool = _label_pool(settings, run, engine, shelf)
        write_rows(folder / "pool.jsonl", (row.to_json() for row in stored(curators, pool, run.task, run.seed)))
        if not any(map(asks_teacher, curators.values())):
            shelf.close()
            opened.close()  # their memory serves the models that curators open
        labelled = [replace(row, provenance={**row.provenance, "source": "labelled"}) for row in run.task.labelled]
        curated = curate(curators, settings, run, [*labelled, *pool], engine, shelf)
    write_rows(folder / "rejected.jsonl", (row.to_json() for row in curated.rejected))
    if not curated.kept:
        hint = f"see {folder / 'pool.jsonl'} for what there was and {folder / 'rejected.jsonl'} for why it was dropped"
        raise UserError("no example is left after curating", hint)
    write_rows(folder / "train.jsonl", (row.to_json() for row in curated.kept))
    once = {name: asdict(cost) for name, cost in shelf.fixed.items()}
    costs = {"pipeline on valid": spent, "pipeline on the pool": spent_on_pool, "paid once": once}
    summary = {**measured, **_pool_summary(run, pool, curated.kept)}
    return {**summary, "curators": curated.counts, "costs_by_step": costs}


def reads(settings: Settings, folder: Path) -> dict[str, str]:
    """What the stage reads beside task and settings: hashes of what people have decided so far, by curator."""
    found = {}
    for name, curator in curators_of(settings).items():
        decided = getattr(curator, "decided", None)
        if decided is not None:
            found[name] = decided(folder, name)
    return {name: decisions for name, decisions in found.items() if decisions}


def _measure(
    settings: Settings, run: Run, engine: Engine, folder: Path, shelf: Shelf
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shares of valid that plain prompt and pipeline answer exactly, and what each step took."""
    valid = run.task.valid[: settings.valid_rows]
    plain_rows = valid[: settings.plain_rows]
    with run.progress.task("plain prompt on valid", len(plain_rows), "calls") as tick:
        plain = plain_of(settings, run, engine, "plain prompt on valid", tick).answer([e.request for e in plain_rows])
    pipeline = pipeline_of(settings, run, engine, "pipeline on valid", shelf=shelf)
    total = len(valid) * pipeline.calls_per_request
    with run.progress.task("pipeline on valid", total, "calls") as tick:
        pipeline.bench = replace(pipeline.bench, advance=tick)
        requests = [e.request for e in valid]
        led = pipeline.answer(requests[: pipeline.chunk])
        say_corrected(settings, run)
        led += pipeline.answer(requests[pipeline.chunk :])
    rows = []
    for place, (example, answer) in enumerate(zip(valid, led, strict=True)):
        row = {**example.to_json(), "pipeline": [call.to_json() for call in answer.calls], "pipeline_raw": answer.raw}
        row["confidence"] = answer.confidence
        if place < len(plain):
            row["plain_prompt"] = [call.to_json() for call in plain[place].calls]
        rows.append(row)
    write_rows(folder / "valid.jsonl", rows)
    summary = {"plain_prompt": _share(run, plain_rows, plain), "pipeline": _share(run, valid, led)}
    for name, (share, low, high, n) in summary.items():
        run.progress.note(f"  {name}: {share:.3f} exact on valid [{low:.3f}, {high:.3f}], n {n}")
    return {f"valid_{name}": figures for name, figures in summary.items()}, _costs(pipeline)


def _costs(pipeline: Pipeline) -> dict[str, Any]:
    """What each step took for its requests, as plain values."""
    fixed = pipeline.bench.shelf.fixed
    return {name: asdict(spent) for name, spent in pipeline.costs_by_step.items() if name not in fixed}


def _share(run: Run, examples: Sequence[Example], answers: Sequence[Answer]) -> tuple[float, float, float, int]:
    gold = [example.answer.calls if example.answer else () for example in examples]
    tools = [_tools_of(example, run) for example in examples]
    hits = sum(is_exact(a, g, known) for a, g, known in zip(answers, gold, tools, strict=True))
    return (hits / max(1, len(gold)), *wilson_interval(hits, len(gold)), len(gold))


def _tools_of(example: Example, run: Run) -> Mapping[str, Tool]:
    """The functions whose schemas say which values are equal: the request's own, or the task's."""
    return {tool.name: tool for tool in example.request.tools} or run.task.tool_map


def _label_pool(settings: Settings, run: Run, engine: Engine, shelf: Shelf) -> tuple[list[Example], dict[str, Any]]:
    """The pool's rows with answers and verdicts, and what each step took."""
    pool = run.task.unlabelled[: settings.pool_rows]
    pipeline = pipeline_of(settings, run, engine, "pipeline on the pool", shelf=shelf)
    total = len(pool) * pipeline.calls_per_request
    with run.progress.task("labelling the pool", total, "calls") as tick:
        pipeline.bench = replace(pipeline.bench, advance=tick)
        traces = pipeline.trace([example.request for example in pool])
    labelled = []
    for example, trace in zip(pool, traces, strict=True):
        answer = trace.as_answer(pipeline.name)
        # Words that nobody could read are no "no call": that would be learned.
        problem = trace.failure if answer.readable else "unreadable answer"
        verdict = Verdict("fail", 0.0, problem) if problem else run.task.verify(example.request, answer.calls)
        provenance = {**example.provenance, "source": "pool", "by": "pipeline", **_remarks(trace)}
        labelled.append(replace(example, answer=answer, verdict=verdict, provenance=provenance))
    return labelled, _costs(pipeline)


def _remarks(trace: Trace) -> dict[str, Any]:
    """Which engine answered, where a step chose one, and what steps had to say; nothing where they had not."""
    return ({"engine": trace.by} if trace.by else {}) | ({"notes": list(trace.notes)} if trace.notes else {})


def _pool_summary(run: Run, pool: Sequence[Example], kept: Sequence[Example]) -> dict[str, Any]:
    """How right the labels are, where the pool's gold is known. It is measured here and used for nothing."""
    gold = run.task.pool_gold
    ids = {example.request.id for example in kept}
    requests = {example.request.id: example.request for example in pool}
    known = [e for e in pool if e.request.id in gold and e.answer is not None]
    right = [is_exact(e.answer, gold[e.request.id], _tools_of(e, run)) for e in known if e.answer]
    # A curator may have mended an answer; of a request that it changed, such as by stand-ins, gold is not known.
    same = [e for e in kept if e.request.id in gold and e.answer and requests.get(e.request.id) == e.request]
    kept_right = [is_exact(e.answer, gold[e.request.id], _tools_of(e, run)) for e in same if e.answer]
    summary = {"pool_rows": len(pool), "train_rows": len(kept), "pool_kept": sum(e.request.id in ids for e in pool)}
    if known:
        run.progress.note(
            f"  labels of the pool: {sum(right) / len(right):.3f} right of {len(right)}; "
            f"of the {len(kept_right)} kept {sum(kept_right) / max(1, len(kept_right)):.3f}"
        )
        return {
            **summary,
            "pool_right_share": sum(right) / len(right),
            "kept_right_share": sum(kept_right) / max(1, len(kept_right)),
        }
    return summary
