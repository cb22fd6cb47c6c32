"""Measures everything that answers the task's requests on test, and writes what was bought on one page."""

from __future__ import annotations

import platform
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supertiny.core import scoring
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, sha256_of, write_json, write_rows, write_text
from supertiny.core.protocols import Answerer
from supertiny.core.records import Example
from supertiny.report.costs import break_even, differences, project_costs, prompt_saving, step_prices
from supertiny.report.floor import TfidfFloor
from supertiny.report.front import search_of
from supertiny.report.markdown import markdown
from supertiny.report.meters import Measurement, figures, function_of, gold_of, measure
from supertiny.report.page import page
from supertiny.report.redact import redacted
from supertiny.report.settings import Settings
from supertiny.report.sizes import model_bytes
from supertiny.report.verdict import verdict

if TYPE_CHECKING:
    from supertiny.core.run import Run

_MEASURED = ".measured"  # what was measured before the stage was killed
_LEARNED = ("learner", "lessons", "before", "valid_exact", "low", "high", "n", "seconds", "tokens")


def run(settings: Settings, run: Run, folder: Path, answerers: Mapping[str, Callable[[], Answerer]]) -> dict[str, Any]:
    """Opens the answerers one after the other, in their order, and writes report.html, .json, .md and rows.jsonl.

    Without a `tfidf_floor` among them the floor is added. Raises UserError where test is empty or nothing is left
    to measure.
    """
    examples = drawn(run.task.test, settings.test_rows, run.seed)
    chosen = _chosen(settings, run, answerers)
    if not examples:
        raise UserError("the task has no test rows", "the report needs test.jsonl with calls")
    measurements = {name: _measured(name, chosen[name], examples, settings, run, folder) for name in chosen}
    report = build_report(settings, run, examples, measurements)
    rows = build_rows(run, examples, measurements)
    write_rows(folder / "rows.jsonl", rows)
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", markdown(report))
    write_text(folder / "report.html", page(report, rows, settings.page_rows))
    shutil.rmtree(folder / _MEASURED, ignore_errors=True)
    shown = ("exact", "p50_seconds", "bytes", "dollars_per_1000")
    table = {entry["name"]: {key: entry[key] for key in shown} for entry in report["answerers"]}
    return {"verdict": report["verdict"], "n": len(examples), "answerers": table}


def drawn(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """`count` of the examples by the seed, in their order; all where there is no count."""
    if count is None or count >= len(examples):
        return list(examples)
    places = sorted(random.Random(f"test rows {seed}").sample(range(len(examples)), count))
    return [examples[place] for place in places]


def build_report(
    settings: Settings, run: Run, examples: Sequence[Example], measurements: Mapping[str, Measurement]
) -> dict[str, Any]:
    """Everything that the three renderings show, as plain values, without secrets."""
    tools, price = run.task.tool_map, settings.dollars_per_hour
    entries = [figures(measurement, examples, tools, price) for measurement in measurements.values()]
    by_name = {entry["name"]: entry for entry in entries}
    hits = {
        name: [scoring.is_exact(a, gold_of(e), tools) for a, e in zip(m.answers, examples, strict=True)]
        for name, m in measurements.items()
    }
    manifest = run.manifest
    stages = manifest.get("stages", {})
    costs = project_costs(run.ledger.bills(), run.ledger.lost(), stages, price)
    report: dict[str, Any] = {
        "answerers": entries,
        "rows": "rows.jsonl",
        "differences": differences(hits, run.seed),
        "costs": costs,
        "break_even": break_even(by_name, costs),
        "prompt_saving": prompt_saving(by_name),
        "step_prices": step_prices(stages.get("prototype", {}).get("summary", {}), price),
        "learners": _learners(stages.get("transfer", {}).get("summary", {})),
        "compress_steps": _compress_steps(run.folder),
        "compress_search": search_of_student(run.folder),
        "task": _about_task(run, examples),
        "seed": run.seed,
        "settings": run.recipe.text,
        "versions": {"supertiny": manifest.get("supertiny"), "python": platform.python_version()}
        | manifest.get("versions", {}),
        "machine": manifest.get("machine", {}),
        "hashes": _hashes(run, manifest),
    }
    report["verdict"] = verdict(report)
    clean: dict[str, Any] = redacted(report)
    return clean


def search_of_student(run_folder: Path) -> dict[str, Any] | None:
    """What `supertiny compress` wrote of the student that the run has now; None where it is of another, or not there.

    A search that does not say whose it is is taken as the run's.
    """
    found = search_of(run_folder)
    known = (found or {}).get("student_sha256")
    own = sorted((run_folder / "transfer" / "student").glob("*.safetensors"))
    return found if known is None or known == [sha256_of(path) for path in own] else None


def build_rows(run: Run, examples: Sequence[Example], measurements: Mapping[str, Measurement]) -> list[dict[str, Any]]:
    """One row per test example: the request, its gold, and what each answerer said."""
    tools, rows = run.task.tool_map, []
    for place, example in enumerate(examples):
        gold = gold_of(example)
        answers = {}
        for name, measurement in measurements.items():
            answer = measurement.answers[place]
            found = run.task.verify(example.request, answer.calls)
            answers[name] = {
                "calls": [call.to_json() for call in answer.calls],
                "text": answer.text,
                "raw": answer.raw,
                "exact": scoring.is_exact(answer, gold, tools),
                "similarity": scoring.similarity(answer.calls, gold, tools),
                "confidence": answer.confidence,
                "seconds": answer.cost.seconds,
                "outcome": found.outcome,
                "reason": found.reason,
            }
        rows.append(
            {
                "id": example.request.id,
                "request": example.request.text,
                "messages": [dict(message) for message in example.request.messages],
                "gold": [call.to_json() for call in gold],
                "function": function_of(gold),
                "template": example.provenance.get("template"),
                "answers": answers,
            }
        )
    return rows


def _chosen(
    settings: Settings, run: Run, answerers: Mapping[str, Callable[[], Answerer]]
) -> dict[str, Callable[[], Answerer]]:
    offered: dict[str, Callable[[], Answerer]] = {"tfidf_floor": lambda: TfidfFloor.open(run), **answerers}
    if settings.answerers == "all":
        return offered
    absent = [name for name in settings.answerers if name not in offered]
    if absent:
        raise UserError(f"report.answerers: nothing answers as {absent}", f"this run has {', '.join(offered)}")
    return {name: offered[name] for name in offered if name in settings.answerers}


def _measured(
    name: str,
    opens: Callable[[], Answerer],
    examples: Sequence[Example],
    settings: Settings,
    run: Run,
    folder: Path,
) -> Measurement:
    """Measures one answerer, or reads what was measured before this stage was killed."""
    known = folder / _MEASURED / f"{name}.json"
    ids = [example.request.id for example in examples]
    if known.is_file():
        stored = read_json(known)
        if stored["ids"] == ids:
            return Measurement.from_json(stored["measurement"])
    answerer = opens()
    try:
        with run.progress.task(f"measuring {name}", len(examples), "requests") as tick:
            measurement = measure(answerer, [e.request for e in examples], settings, run.seed, tick)
            # The mapping's name counts: two answerers may be built from one class.
            measurement = replace(measurement, name=name, bytes=model_bytes(run, name, answerer))
    finally:
        close = getattr(answerer, "close", None)
        if close is not None:
            close()
    write_json(known, {"ids": ids, "measurement": measurement.to_json()})
    return measurement


def _learners(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each learner bought on valid, the floor's first; of the first learner of a student nothing stood before."""
    return [
        {"student": student, **{key: learned.get(key) for key in _LEARNED}}
        for student in ("labelled_only", "student")
        for learned in summary.get(student, {}).get("learners", ())
    ]


def _compress_steps(run_folder: Path) -> list[dict[str, Any]]:
    path = run_folder / "compress" / "steps.json"
    if not path.is_file():
        return []
    steps = read_json(path)
    found: list[dict[str, Any]] = steps["steps"] if isinstance(steps, dict) else steps
    return found


def _about_task(run: Run, examples: Sequence[Example]) -> dict[str, Any]:
    """What was asked, with one real example of it."""
    task = run.task
    example = next((e for e in examples if gold_of(e)), examples[0])
    splits = {name: len(getattr(task, name)) for name in ("labelled", "unlabelled", "valid", "test")}
    return {
        "name": task.name,
        "description": task.description,
        "tools": len(task.tools),
        "splits": splits,
        "example": {"request": example.request.text, "calls": [call.to_json() for call in gold_of(example)]},
    }


def _hashes(run: Run, manifest: Mapping[str, Any]) -> dict[str, str]:
    card = run.folder / "compress" / "artifact" / "artifact.json"
    hashes = {"task": run.task.hash}
    if card.is_file():
        hashes["artifact sha256"] = str(read_json(card).get("sha256", ""))
    return hashes | {f"{stage} key": str(done.get("key", "")) for stage, done in manifest.get("stages", {}).items()}
