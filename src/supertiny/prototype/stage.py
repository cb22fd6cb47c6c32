"""task + language model -> measured teacher pipeline -> verified examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.files import write_rows
from supertiny.core.methods import build
from supertiny.core.protocols import Answerer, Engine
from supertiny.core.records import Answer, Example, Verdict
from supertiny.core.run import Run
from supertiny.core.scoring import is_exact, wilson_interval
from supertiny.prototype.settings import Settings
from supertiny.prototype.teacher import open_engine, pipeline_of, plain_of


def run(settings: Settings, run: Run, folder: Path) -> dict[str, Any]:
    """Measures plain prompt and pipeline on valid, labels the pool, curates; writes train, pool and valid rows."""
    run.progress.note(f"loading the teacher's model {settings.engine}")
    engine = open_engine(settings)
    try:
        measured = _measure(settings, run, engine, folder)
        pool = _label_pool(settings, run, engine)
    finally:
        engine.close()
    write_rows(folder / "pool.jsonl", (example.to_json() for example in pool))
    labelled = [replace(row, provenance={**row.provenance, "source": "labelled"}) for row in run.task.labelled]
    kept = labelled + [row for row in pool if row.answer is not None and row.answer.readable]
    for number, block in enumerate(settings.curators):
        before = len(kept)
        kept = build("curators", block, f"prototype.curators.{number}").curate(kept, run.task, run.seed)
        run.progress.note(f"  {block if isinstance(block, str) else block['method']}: {before} -> {len(kept)} rows")
    if len(kept) == 0:
        raise UserError(
            "no example is left after curating", f"see {folder / 'pool.jsonl'} for what was dropped and why"
        )
    write_rows(folder / "train.jsonl", (example.to_json() for example in kept))
    return {**measured, **_pool_summary(run, pool, kept)}


def _measure(settings: Settings, run: Run, engine: Engine, folder: Path) -> dict[str, Any]:
    valid = run.task.valid[: settings.valid_rows]
    plain_rows = valid[: settings.plain_rows]
    with run.progress.task("plain prompt on valid", len(plain_rows), "calls") as tick:
        plain = plain_of(settings, run, engine, "plain prompt on valid", tick).answer([e.request for e in plain_rows])
    pipeline = pipeline_of(settings, run, engine, "pipeline on valid")
    total = len(valid) * pipeline.calls_per_request
    with run.progress.task("pipeline on valid", total, "calls") as tick:
        pipeline.bench = replace(pipeline.bench, advance=tick)
        led = pipeline.answer([e.request for e in valid])
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
    return {f"valid_{name}": figures for name, figures in summary.items()}


def _share(run: Run, examples: Sequence[Example], answers: Sequence[Answer]) -> tuple[float, float, float, int]:
    gold = [example.answer.calls if example.answer else () for example in examples]
    hits = sum(is_exact(a, g, run.task.tool_map) for a, g in zip(answers, gold, strict=True))
    return (hits / max(1, len(gold)), *wilson_interval(hits, len(gold)), len(gold))


def _label_pool(settings: Settings, run: Run, engine: Engine) -> list[Example]:
    pool = run.task.unlabelled[: settings.pool_rows]
    pipeline = pipeline_of(settings, run, engine, "pipeline on the pool")
    total = len(pool) * pipeline.calls_per_request
    with run.progress.task("labelling the pool", total, "calls") as tick:
        pipeline.bench = replace(pipeline.bench, advance=tick)
        answers = _answered(pipeline, pool)
    labelled = []
    for example, answer in zip(pool, answers, strict=True):
        # Words that nobody could read are no "no call": that would be learned.
        unread = Verdict("fail", 0.0, "unreadable answer")
        verdict = run.task.verify(example.request, answer.calls) if answer.readable else unread
        provenance = {**example.provenance, "source": "pool", "by": "pipeline"}
        labelled.append(replace(example, answer=answer, verdict=verdict, provenance=provenance))
    return labelled


def _answered(answerer: Answerer, examples: Sequence[Example]) -> list[Answer]:
    return answerer.answer([example.request for example in examples])


def _pool_summary(run: Run, pool: Sequence[Example], kept: Sequence[Example]) -> dict[str, Any]:
    """How right the labels are, where the pool's gold is known. It is measured here and used for nothing."""
    gold, tools = run.task.pool_gold, run.task.tool_map
    ids = {example.request.id for example in kept}
    known = [e for e in pool if e.request.id in gold and e.answer is not None]
    right = [is_exact(e.answer, gold[e.request.id], tools) for e in known if e.answer]
    kept_right = [hit for hit, e in zip(right, known, strict=True) if e.request.id in ids]
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
