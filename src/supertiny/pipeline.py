"""The whole thread: reads and checks a recipe, runs the stages that are not done, in the order in which data flows."""

from __future__ import annotations

import errno
import importlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from supertiny import __version__
from supertiny.core.errors import UserError, UserErrors, gathered, nearest_word
from supertiny.core.files import hash_of, read_json, write_json
from supertiny.core.ledger import Ledger
from supertiny.core.methods import Own, build, cards, own_methods, validated
from supertiny.core.progress import Progress
from supertiny.core.protocols import Answerer
from supertiny.core.recipe import SEARCH, STAGES, Recipe, read_recipe
from supertiny.core.run import Run, open_folder
from supertiny.core.task import STEPS, Task, load_task
from supertiny.training.named_files import FILES, named_files

_SEARCH_OPTIONS = ("budget", "plans", "minutes")  # of a search, which people write as settings


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe with its overrides. Raises UserErrors with all mistakes of the recipe and of its task."""
    recipe = read_recipe(path, overrides, _mistakes_within)
    check(recipe)
    return recipe


def check(recipe: Recipe) -> dict[str, Any]:
    """Settings of each stage, by its name. Raises UserErrors with every mistake, before anything is spent."""
    from supertiny.prototype.demands import mistakes as unmet
    from supertiny.prototype.demands import unserving

    asks = not (recipe.folder / STAGES[-1]).is_dir()  # neither key nor price is needed where the run is done
    own, errors = _own_steps(recipe.task)
    settings, mistakes = _settings(recipe.sections, own)
    errors += mistakes
    with gathered(errors):
        task = load_task(recipe.task)
        if "prototype" in settings:
            errors += unmet(settings["prototype"], task, own, asks)
    teacher = getattr(settings.get("transfer"), "teacher", "")
    if teacher and not isinstance(teacher, str):
        with gathered(errors):
            errors += unserving("transfer.teacher", teacher, "token_scores", asks)
    for stage, read in settings.items():
        with gathered(errors):
            named_files(read, stage, recipe.folder / stage)
    if SEARCH in recipe.sections:
        with gathered(errors):
            _search_of(recipe, settings)
    if errors:
        raise UserErrors(errors)
    return settings


def advice(settings: Mapping[str, Any]) -> list[str]:
    """What is no mistake and yet hardly meant, in settings that `check` has read."""
    from supertiny.compress.demands import taken_back

    told = ""
    with suppress(UserError):  # a broken file is told by who opens it
        told = taken_back(settings["compress"], settings["transfer"].student, settings["transfer"].quantization_aware)
    return [f"compress.steps: {told}"] if told else []


def _mistakes_within(sections: Mapping[str, Any], task: Path | None) -> list[UserError]:
    own, errors = _own_steps(task) if task is not None else (None, [])
    return [*errors, *_settings(sections, own)[1]]


def _own_steps(task: Path) -> tuple[Own | None, list[UserError]]:
    errors: list[UserError] = []
    own = None
    with gathered(errors):
        own = own_methods("steps", task / STEPS)
    return own, errors


def _settings(sections: Mapping[str, Any], own: Own | None) -> tuple[dict[str, Any], list[UserError]]:
    """Settings of the stages that have no mistake, and all mistakes of the others."""
    from supertiny.compress.demands import mistakes as unfitting
    from supertiny.transfer.demands import mistakes as untaught

    settings: dict[str, Any] = {}
    errors: list[UserError] = []
    for stage in STAGES:
        schema = importlib.import_module(f"supertiny.{stage}.settings").Settings
        given = dict(sections.get(stage) or {})
        for option in [name for name in _SEARCH_OPTIONS if stage == "compress" and name in given]:
            hint = f"it is an option: supertiny compress RUN --{option} {shlex.quote(str(given.pop(option)))}"
            errors.append(UserError(f"compress: there is no setting {option!r}", hint))
        with gathered(errors):
            settings[stage] = validated(schema, given, stage, own)
    if "transfer" in settings:
        errors += untaught(settings["transfer"])
        if "compress" in settings:
            with gathered(errors):
                errors += unfitting(settings["compress"].steps, settings["transfer"].student)
    return settings, errors


def _search_of(recipe: Recipe, settings: Mapping[str, Any]) -> Any:
    """What the recipe says of a search; what it does not say is derived. Raises UserErrors with every mistake."""
    from supertiny.core.models import absent_models
    from supertiny.prototype.demands import missing_models
    from supertiny.prototype.search.settings import Settings as Search
    from supertiny.prototype.search.space import mistakes

    search = validated(Search, recipe.sections.get(SEARCH, {}), SEARCH)
    errors, own = [], own_methods("steps", recipe.task / STEPS)
    if "prototype" in settings:  # what is derived from it can be told where it is right
        errors += mistakes(search, settings["prototype"], own)
    if not errors:
        lists = {f"optimise.steps.{n}": steps for n, steps in enumerate(search.steps or ())}
        lists["optimise.optional"] = search.optional or ()
        blocks = {f"{place}.{n}": block for place, steps in lists.items() for n, block in enumerate(steps)}
        errors += missing_models(blocks, own)
    engines = ((f"optimise.engines.{number}.model", engine) for number, engine in enumerate(search.engines))
    errors += absent_models({place: engine.get("model", "") for place, engine in engines if _is_embedded(engine)})
    if errors:
        raise UserErrors(errors)
    return search


def _is_embedded(engine: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(engine, Mapping) and engine.get("method") in ("openvino", "llama_cpp")


def execute(recipe: Recipe, only: str | None = None, estimate: bool = False, progress: Progress | None = None) -> Path:
    """Runs what is not done yet; gives the run folder. `estimate` says what it would take and spends nothing."""
    settings = check(recipe)
    if only is not None and only not in STAGES:
        raise UserError(f"there is no stage {only!r}", nearest_word(only, STAGES))
    progress = progress or Progress()
    for told in advice(settings):
        progress.note(f"note: {told}")
    if estimate:
        from supertiny.prototype.estimate import estimate as say

        task = load_task(recipe.task)
        asked, hourly = _asked_on_test(settings["report"], task), settings["report"].dollars_per_hour
        say(settings["prototype"], task, progress, asked, recipe.folder / "ledger.sqlite", hourly)
        if billed := list(_billed(asdict(settings["transfer"]), "transfer")):
            progress.note(f"  not in it: what learners ask of billed engines: {', '.join(billed)}")
        return recipe.folder
    with _opened(recipe, settings, progress) as run:
        progress.note(f"results go to {recipe.folder}")
        _run_stages(run, settings, only)
    return recipe.folder


def _billed(value: Any, place: str) -> Iterator[str]:
    """Places of the engines within settings that somebody bills. Raises UserError where nobody knows a price."""
    if isinstance(value, Mapping) and value.get("method") in cards("engines"):
        engine = build("engines", value, place)
        if hasattr(engine, "base_url") and engine.price().is_billed:
            yield place
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, part in inner:
        yield from _billed(part, f"{place}.{name}")


def optimise(recipe: Recipe, progress: Progress | None = None) -> dict[str, Any]:
    """Searches the best teacher pipeline on valid within the recipe's run folder; gives what it found."""
    from supertiny.prototype.optimise import optimise as search

    settings = check(recipe)
    wanted = _search_of(recipe, settings)
    with _opened(recipe, settings, progress or Progress()) as run:
        return search(settings["prototype"], wanted, run)


def compress(
    recipe: Recipe, budget: str, plans: int = 6, minutes: float | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Searches smaller and faster artifacts of a run's student within a budget; each point can be served.

    `budget` is what a person types; "" sets no limit. Raises UserError where the student is not there yet.
    """
    from supertiny.compress.budget import Budget
    from supertiny.compress.search import FOLDER, point_folders, search
    from supertiny.report.front import show_search
    from supertiny.serve.service import Service

    limits = Budget.read(budget) if budget.strip() else Budget()
    settings = check(recipe)
    if not (recipe.folder / "transfer" / "student").is_dir():
        raise UserError(f"{recipe.folder} has no student yet", "run the recipe first: supertiny run RECIPE")
    with _opened(recipe, settings, progress or Progress()) as run:
        outcome = search(settings["compress"], run, limits, plans, minutes)
        for place in point_folders(recipe.folder / FOLDER, outcome).values():
            form = read_json(place / "compress" / "artifact" / "artifact.json")["format"]
            task, own = run.task, settings["serve"]
            service = Service(task.name, "compress/artifact", form, own, task.tools, task.description)
            service.save(place / "serve")
        show_search(run.folder, settings["report"].page_rows)
    return outcome


@contextmanager
def _opened(recipe: Recipe, settings: Mapping[str, Any], progress: Progress) -> Iterator[Run]:
    """The run in its folder, which no other process may work on meanwhile."""
    free = open_folder(recipe)
    try:
        ledger = Ledger(recipe.folder / "ledger.sqlite", settings["prototype"].budget)
        try:
            yield Run(recipe.folder, recipe, load_task(recipe.task), ledger, progress)
        finally:
            ledger.close()
    finally:
        free()


def _asked_on_test(report: Any, task: Task) -> dict[str, int]:
    """Requests that the report puts to each of the teacher's answerers: all rows, and single ones for latency."""
    rows = min(len(task.test), report.test_rows or len(task.test))
    single = min(rows, report.latency_requests) + min(rows, report.warm_up_requests)
    return {
        name: rows + single
        for name in ("plain_prompt", "pipeline")
        if report.answerers == "all" or name in report.answerers
    }


def _run_stages(run: Run, settings: Mapping[str, Any], only: str | None) -> None:
    key = hash_of({"task": run.task.hash, "seed": run.seed})
    for number, stage in enumerate(STAGES, 1):
        # A stage's key covers its settings, the results before it, the task and the version: what it read, in one hash.
        read = {"before": key, "settings": _hashed(settings[stage]), "supertiny": __version__}
        key = hash_of(read | _read_beside(stage, settings, run))
        if only not in (None, stage):
            stale = not run.is_done(stage, key)
            if stale and STAGES.index(stage) < STAGES.index(str(only)):
                problem = f"{run.folder / stage} is not there, or was made with other settings"
                raise UserError(problem, f"run without --only, or with --only {stage} first")
            if stale and (run.folder / stage).is_dir():
                run.progress.note(
                    f"[{number}/{len(STAGES)}] {stage}: not of these settings; without --only it is made anew"
                )
            continue
        if run.is_done(stage, key):
            run.progress.note(f"[{number}/{len(STAGES)}] {stage}: done before, nothing to do")
            continue
        if stage == "serve" and only is None and not _is_served(run):
            run.progress.note(f"[{number}/{len(STAGES)}] serve: left out, no engine here opens the artifact; vLLM may")
            continue
        run.progress.note(f"[{number}/{len(STAGES)}] {stage}")
        run.do(stage, key, partial(_work, stage, settings, run))


def _read_beside(stage: str, settings: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """What a stage reads in files that are no stage's: people's decisions, files that learners name; may be nothing."""
    found = {"files": named_files(settings[stage], stage, run.folder / stage)}
    if stage == "prototype":
        from supertiny.prototype.stage import reads

        found["decided"] = reads(settings[stage], run.folder)
    return {name: read for name, read in found.items() if read}


def _hashed(settings: Any) -> dict[str, Any]:
    """What of a stage's settings is part of its key.

    A budget is not: it says how far a run may go, not what comes out. Nor is a setting that came later (`added` in its
    metadata) and is not used: runs made before it stay valid.
    """
    unused = {f.name for f in fields(settings) if f.metadata.get("added") and getattr(settings, f.name) == _default(f)}
    return {name: value for name, value in asdict(settings).items() if name not in {"budget", *unused}}


def _default(setting: Field[Any]) -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def _work(stage: str, settings: Mapping[str, Any], run: Run, folder: Path) -> Mapping[str, Any]:
    work = importlib.import_module(f"supertiny.{stage}.stage").run
    more = (answerers(settings, run),) if stage == "report" else ()
    files = named_files(settings[stage], stage)  # the stage needs them all: what is gone is told before it begins
    try:
        summary: Mapping[str, Any] = work(settings[stage], run, folder, *more)
    except OSError as error:
        # Copying a folder tells a full disk in words alone, without its number.
        if not any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise
        hint = "free some disk space and run the same command to go on"
        raise UserError(f"{stage}: the disk of {run.folder} is full", hint) from error
    if files:
        write_json(folder / FILES, files)
    return summary


def answerers(settings: Mapping[str, Any], run: Run) -> dict[str, Callable[[], Answerer]]:
    """Everything that answers the task's requests, by its name in the report; each is opened when it is asked for."""
    served = {"artifact": partial(_open_artifact, run)} if _is_served(run) else {}
    return {
        "tfidf_floor": partial(_open_floor, run),
        "labelled_only": partial(_open_student, settings, run, "labelled_only"),
        "plain_prompt": partial(_open_teacher, settings, run, "plain_of"),
        "pipeline": partial(_open_teacher, settings, run, "pipeline_of"),
        "student": partial(_open_student, settings, run, "student"),
        **served,
    }


def _is_served(run: Run) -> bool:
    from supertiny.core.artifact import opens_here

    return opens_here(run.folder / "compress" / "artifact")


def _open_floor(run: Run) -> Answerer:
    from supertiny.report.floor import TfidfFloor

    floor: Answerer = TfidfFloor.open(run)
    return floor


def _open_teacher(settings: Mapping[str, Any], run: Run, kind: str) -> Answerer:
    from supertiny.prototype import teacher

    engine = teacher.open_engine(settings["prototype"])
    opened: Answerer = getattr(teacher, kind)(settings["prototype"], run, engine, f"{kind.removesuffix('_of')} on test")
    return opened


def _open_student(settings: Mapping[str, Any], run: Run, name: str) -> Answerer:
    from supertiny.core.student import Student
    from supertiny.formats._answerer import ModelAnswerer

    student = Student.open(run.folder / "transfer" / name)
    engine = build("engines", "torch").open(student.folder)
    longest = settings["serve"].max_tokens  # as the artifact: the table compares like with like
    return ModelAnswerer(name, engine, build("formats", student.format), run.task.tools, longest, constrained=False)


def _open_artifact(run: Run) -> Answerer:
    from supertiny.serve.stage import open_artifact

    artifact: Answerer = open_artifact(run.folder, run.task.tools)
    return artifact
