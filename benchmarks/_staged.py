"""Runs of the real stages on prepared rows, and how their students and artifacts are measured side by side.

What was done is a stage's folder or a cell's file, and is not done again: a benchmark that was stopped goes on.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._selecting import drawn
from supertiny import __version__
from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, read_json, read_rows, sha256_of, write_json, write_rows
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build, validated
from supertiny.core.progress import Progress
from supertiny.core.protocols import Format
from supertiny.core.recipe import Recipe
from supertiny.core.records import Answer, Example
from supertiny.core.run import Run, open_folder
from supertiny.core.scoring import is_exact, paired_bootstrap, wilson_interval
from supertiny.core.student import Student
from supertiny.core.task import Task, load_task

Figure = tuple[str, str, float]
AT_ONCE = 32  # requests between two words of progress
WARM_UP = 2  # single requests that are not timed


@contextmanager
def opened(recipe: Recipe, progress: Progress) -> Iterator[Run]:
    """The recipe's run in its folder. Raises UserError where another process works on it."""
    free = open_folder(recipe)
    try:
        ledger = Ledger(recipe.folder / "ledger.sqlite")
        try:
            yield Run(recipe.folder, recipe, load_task(recipe.task), ledger, progress)
        finally:
            ledger.close()
    finally:
        free()


def settings_of(stage: str, section: Mapping[str, Any]) -> Any:
    """A stage's settings. Raises UserErrors with every mistake of the section."""
    return validated(importlib.import_module(f"supertiny.{stage}.settings").Settings, section, stage)


def prepared(run: Run, curators: Sequence[Any], count: int, finished: Path | None = None) -> str:
    """Puts train.jsonl in the prototype's place; gives its key.

    Rows are the labelled ones and the pool with its gold as labels, led through those of the recipe's curators that
    ask nobody; or those of a finished run. Of more than `count`, where it is not 0, as many are drawn by the seed.
    """
    path = None if finished is None else finished / "prototype" / "train.jsonl"
    if path is not None and not path.is_file():
        raise UserError(f"{finished} has no prototype/train.jsonl", "name the folder of a run whose prototype is done")
    source = sha256_of(path) if path is not None else [list(curators), run.task.hash]
    key = hash_of(["prepared", source, count, run.seed, __version__])
    if not run.is_done("prototype", key):
        known = gold_rows(run.task, curators, run.seed) if path is None else map(Example.from_json, read_rows(path))
        rows = list(known)
        rows = drawn(rows, run.seed, count) if count else rows

        def work(folder: Path) -> Mapping[str, Any]:
            write_rows(folder / "train.jsonl", [row.to_json() for row in rows])
            return {"rows": len(rows), "from": "gold" if path is None else str(path)}

        run.do("prototype", key, work)
    return key


def gold_rows(task: Task, curators: Sequence[Any], seed: int) -> list[Example]:
    """All rows whose right answer is known, but for valid and test, curated as far as that asks nobody."""
    rows = [Example(r.request, r.answer, r.verdict, {**r.provenance, "source": "labelled"}) for r in task.labelled]
    for row in task.unlabelled:
        if row.request.id in task.pool_gold:
            calls = task.pool_gold[row.request.id]
            verdict = task.verify(row.request, calls)
            rows.append(Example(row.request, Answer(calls), verdict, {"source": "pool", "by": "gold"}))
    for number, block in enumerate(curators):
        curator = build("curators", block, f"prototype.curators.{number}")
        if not getattr(curator, "needs", ()):
            rows = curator.curate(rows, task, seed)
    return rows


def staged(run: Run, stage: str, settings: Any, read: str, name: str = "") -> tuple[Path, str]:
    """(folder of a stage's results, their key). Done again only where settings, or `read`, its input's key, changed.

    `name` tells apart several results of one stage in one run.
    """
    name = name or stage
    key = hash_of([stage, asdict(settings), read, run.seed, __version__])
    if run.is_done(name, key):
        run.progress.note(f"{name}: done before")
    else:
        run.progress.note(name)
        work = importlib.import_module(f"supertiny.{stage}.stage").run
        run.do(name, key, lambda folder: work(settings, run, folder))
    return run.folder / name, key


def as_gguf(student: Path, type: str, folder: Path) -> Path:
    """The student's weights as one GGUF file of this type, made once; a name of the weights' own tells it apart."""
    place = folder / f"{hash_of([sha256_of(file) for file in sorted(student.glob('*.safetensors'))])}-{type}"
    if not (place / "model.gguf").is_file():
        build("exporters", {"method": "gguf", "type": type}).export(student, place)
    return place / "model.gguf"


@dataclass(frozen=True)
class Bench:
    """Rows that are asked, the engine that answers, and the folder where finished cells stand."""

    run: Run
    form: Format
    engine: Any
    """Block of a recipe."""
    rows: Sequence[Example]
    cells: Path
    max_tokens: int = 96

    def hits(self, model: Path) -> list[bool]:
        """Per row whether a model file answers it exactly, without a grammar, from its cell where that stands."""
        path = self._cell("hits", [sha256_of(model)])
        if not path.is_file():
            engine = build("engines", self.engine).open(model)
            try:
                with self.run.progress.task(f"{model.parent.name} on valid", len(self.rows), "rows") as tick:
                    found = []
                    for start in range(0, len(self.rows), AT_ONCE):
                        part = self.rows[start : start + AT_ONCE]
                        found += self._right(engine, part)
                        tick(len(part))
            finally:
                engine.close()
            write_json(path, found)
        read: list[bool] = read_json(path)
        return read

    def seconds(self, models: Mapping[str, Path], count: int) -> dict[str, list[float]]:
        """Seconds of single requests by each model; they take turns, so that a busy machine harms all alike."""
        path = self._cell("seconds", [[name, sha256_of(model)] for name, model in models.items()] + [count])
        if not path.is_file():
            engines = {name: build("engines", self.engine).open(model) for name, model in models.items()}
            found: dict[str, list[float]] = {name: [] for name in models}
            asked = [self.rows[place % len(self.rows)] for place in range(count + WARM_UP)]
            try:
                with self.run.progress.task("single requests", len(asked), "requests") as tick:
                    for place, row in enumerate(asked):
                        for name, engine in engines.items():
                            answer = self._answers(engine, [row])[0]
                            if place >= WARM_UP:
                                found[name].append(answer.cost.seconds)
                        tick(1)
            finally:
                for engine in engines.values():
                    engine.close()
            write_json(path, found)
        read: dict[str, list[float]] = read_json(path)
        return read

    def _cell(self, what: str, about: list[Any]) -> Path:
        asked = [row.request.id for row in self.rows]
        name = hash_of([what, about, self.engine, self.run.task.hash, asked, self.max_tokens, str(self.form)])
        return self.cells / f"{what}-{name}.json"

    def _answers(self, engine: Any, rows: Sequence[Example]) -> list[Answer]:
        from supertiny.formats._answerer import ModelAnswerer

        tools = self.run.task.tools
        answerer = ModelAnswerer("", engine, self.form, tools, self.max_tokens, constrained=False)
        return answerer.answer([row.request for row in rows])

    def _right(self, engine: Any, rows: Sequence[Example]) -> list[bool]:
        return right(self._answers(engine, rows), rows, self.run.task)


def right(answers: Sequence[Answer], rows: Sequence[Example], task: Task) -> list[bool]:
    """Per row whether its answer is exactly the gold one."""
    gold = [row.answer.calls if row.answer else () for row in rows]
    return [is_exact(answer, calls, task.tool_map) for answer, calls in zip(answers, gold, strict=True)]


def opens_in_transformers(student: Path) -> int:
    """Weights of the student as stock transformers open and run it. Raises UserError where they do not."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(student, dtype="auto", local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(student, local_files_only=True)
        with torch.inference_mode():
            logits = model(torch.tensor([tokenizer.encode("turn on the light")])).logits
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{student} does not open in stock transformers: {error}") from error
    if not bool(logits.isfinite().all()):
        raise UserError(f"{student} opens in stock transformers, and its logits are not finite")
    return sum(weight.numel() for weight in model.parameters())


def mean_by_row(per_seed: Sequence[Sequence[bool]]) -> list[float]:
    """Per row the share of seeds in which it is answered exactly."""
    return [sum(row) / len(per_seed) for row in zip(*per_seed, strict=True)]


def share_figures(name: str, what: str, by_row: Sequence[float]) -> list[Figure]:
    """`name` and its interval over rows: Wilson's where each row is right or wrong, else of the bootstrap."""
    mean = sum(by_row) / len(by_row)
    if set(by_row) <= {0.0, 1.0}:
        low, high = wilson_interval(round(sum(by_row)), len(by_row))
    else:
        _, low, high = paired_bootstrap(by_row, [0.0] * len(by_row), seed=0)
    return [
        (name, what, mean),
        (f"{name}_low", "lower end of its 95 % interval", low),
        (f"{name}_high", "upper end", high),
        (f"{name}_n", "rows of valid", float(len(by_row))),
    ]


def difference_figures(name: str, what: str, left: Sequence[float], beside: Sequence[float]) -> list[Figure]:
    """Mean of left - beside, paired by row."""
    mean, low, high = paired_bootstrap(left, beside, seed=0)
    return [
        (name, what, mean),
        (f"{name}_low", "lower end, paired bootstrap", low),
        (f"{name}_high", "upper end", high),
    ]


def median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds)


def parameters_of(student: Path) -> int:
    return Student.open(student).parameters
