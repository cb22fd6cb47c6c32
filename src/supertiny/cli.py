"""The command line. Only the modules that a command needs are imported, when it runs, so that help is instant."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supertiny import __version__
from supertiny.core.errors import UserError, UserErrors
from supertiny.task_commands import export, new
from supertiny.task_commands import typed_command as _typed

if TYPE_CHECKING:
    from rich.console import Console

USER_ERROR, BUG, STOPPED = 2, 1, 130

app = typer.Typer(
    help="An expensive LLM pipeline in, a super-tiny model out.\n\n"
    "First steps: supertiny new my_task --example smart_home, "
    "then supertiny run my_task/recipe.yaml, then supertiny serve runs/my_task.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(new)
app.command()(export)
models = typer.Typer(help="Model files: list, fetch, verify.", no_args_is_help=True)
app.add_typer(models, name="models")

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, or a task folder with recipe.yaml in it.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[A.B=VALUE]...", help="Values that replace the recipe's.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/smart_home.")]
ModelNames = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Models; all where none is named.")]
Folder = Annotated[Path | None, typer.Option(help="Where results go, instead of the recipe's place.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(f"supertiny {__version__}")
        raise typer.Exit


@app.command()
def check(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Read a recipe and its task; report all mistakes at once, spend nothing.

    Example: supertiny check examples/smart_home/recipe.yaml prototype.budget.minutes=30
    """
    from supertiny.core.methods import own_methods
    from supertiny.core.task import STEPS
    from supertiny.pipeline import advice, load_recipe
    from supertiny.pipeline import check as settings_of

    loaded = load_recipe(_recipe_of(recipe), overrides or [])
    print(f"{_recipe_of(recipe)}: no mistakes; its results go to {loaded.folder}")
    for told in advice(settings_of(loaded)):
        print(f"  note: {told}")
    for card in own_methods("steps", loaded.task / STEPS).get("steps", {}).values():
        print(f"  {card.name}: a step of the task's own, code of its author, {card.path.name}. {card.summary}".rstrip())


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Do this stage alone.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it would take; spend nothing.")] = False,
    folder: Folder = None,
) -> None:
    """Run a recipe's stages in order; what is done already is not done again.

    Stopped at any moment, the same command goes on where it was.

    Example: supertiny run examples/smart_home/recipe.yaml seed=8 --folder runs/second
    """
    from supertiny.pipeline import execute, load_recipe

    values = [*(overrides or []), *([f"folder={folder}"] if folder else [])]
    loaded = load_recipe(_recipe_of(recipe), values)
    results = execute(loaded, only=only, estimate=estimate)
    if not estimate:
        _show_results(results, loaded.task)


@app.command()
def optimise(
    recipe: RecipeFile,
    overrides: Overrides = None,
    write: Annotated[bool, typer.Option("--write", help="Write the chosen pipeline into the recipe.")] = False,
    folder: Folder = None,
) -> None:
    """Find the teacher pipeline that is best on valid, for its price; test is not touched.

    What is tried, and what it may cost, stands in the recipe's section `optimise`; what does not is derived from the
    recipe's steps. Run again, it goes on.

    Example: supertiny optimise examples/smart_home/recipe.yaml optimise.budget.minutes=30 --write
    """
    from supertiny.pipeline import load_recipe
    from supertiny.pipeline import optimise as search
    from supertiny.prototype.search.table import print_choice, print_outcome

    values = [*(overrides or []), *([f"folder={folder}"] if folder else [])]
    loaded = load_recipe(_recipe_of(recipe), values)
    outcome = search(loaded)
    print_outcome(outcome, _console())
    print(f"\nall of it: {loaded.folder / 'optimise.json'}")
    overridden = any(override.startswith("prototype") for override in overrides or [])
    print_choice(outcome, _recipe_of(recipe), write, overridden)


@app.command()
def compress(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE_OR_RUN", help="A recipe, a task folder, or a run folder.")],
    overrides: Overrides = None,
    budget: Annotated[str, typer.Option(help="Limits with units: 'bytes<=60MB, p50<=25ms, drop<=1pt'.")] = "",
    plans: Annotated[int, typer.Option(help="Plans that are run, beside the whole student's.", min=0)] = 6,
    minutes: Annotated[float | None, typer.Option(help="After so many, no further plan is begun.", min=0)] = None,
) -> None:
    """Search smaller, faster artifacts of a run's student: fewer blocks, channels, tokens, bits.

    Measures what the task can spare, tries plans within the budget, draws the front of quality, bytes and latency.
    Run again, it goes on.

    Limits need their units: bytes in kB, MB or GB, p50 in ms or s, drop (below the student, on valid) in pt or %.

    Where no plan is expected to keep the budget, it ends with an error that names the nearest plan and its figures.
    Where plans were run and none keeps it and is promoted, the nearest point is named and none is chosen.

    Left in RUN/compress_search: search.json, and points/NAME/compress/artifact of each point. To serve one point:
    supertiny serve RUN/compress_search/points/NAME

    Example: supertiny compress runs/smart_home --budget "bytes<=60MB, p50<=25ms, drop<=1pt"
    """
    from supertiny.pipeline import compress as search
    from supertiny.pipeline import load_recipe
    from supertiny.report.front import print_front

    values = list(overrides or [])
    if (recipe / "manifest.json").is_file():  # a run: its results are where it is, wherever its recipe says
        values.append(f"folder={recipe}")
    loaded = load_recipe(_recipe_of(recipe), values)
    outcome = search(loaded, budget, plans, minutes)
    print_front(outcome, _console())
    place = loaded.folder / "compress_search"
    print(f"\nall of it: {place / 'search.json'}")
    if outcome["chosen"]:
        print(f"serve:     {_typed()} serve {shlex.quote(str(place / 'points' / outcome['chosen']))}")


@app.command()
def serve(
    run: RunFolder,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
) -> None:
    """Serve a run's artifact behind an OpenAI-compatible endpoint.

    Example: supertiny serve runs/smart_home --port 8000
    """
    finished = _finished(run, "serve")
    from supertiny.serve.server import serve as start

    start(finished, host, port)


@app.command()
def ask(
    run: RunFolder,
    request: Annotated[str, typer.Argument(help="What a user would say.")],
) -> None:
    """Answer one request with a run's artifact and print the calls as JSON.

    Example: supertiny ask runs/smart_home "turn off the kitchen lights"
    """
    finished = _finished(run, "serve")
    from supertiny.serve.server import ask as answer

    print(answer(finished, request))


@app.command()
def compare(first: RunFolder, second: RunFolder) -> None:
    """Show two runs' reports beside each other.

    Example: supertiny compare runs/smart_home runs/second
    """
    from supertiny.core.files import read_json
    from supertiny.report.terminal import compare as table

    left, right = (read_json(_finished(one, "report") / "report" / "report.json") for one in (first, second))
    _console().print(table(left, right, (str(first), str(second))))


@app.command()
def methods(
    family: Annotated[str | None, typer.Argument(metavar="[FAMILY]", help="One family, such as divergences.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the text of docs/methods.md.")] = False,
) -> None:
    """List what a recipe may name, by family.

    Example: supertiny methods divergences
    """
    from supertiny import method_pages

    if markdown:
        print(method_pages.markdown(), end="")
        return
    for name, summary in method_pages.listing(family):
        print(f"  {name:<20} {summary}" if name else summary)


@app.command()
def show(method: Annotated[str, typer.Argument(metavar="NAME", help="A method, or a recipe's section.")]) -> None:
    """Show a method's page: what it does, its paper, when to use it, its settings; or the settings of a section.

    Example: supertiny show forward_kl, or supertiny show transfer, or supertiny show compress.gate
    """
    from supertiny import method_pages

    print("\n\n".join(method_pages.page(card) for card in method_pages.lookup(method)))


@models.command("list")
def list_models() -> None:
    """List the catalogue and what of it is on this machine.

    Example: supertiny models list
    """
    from supertiny.core import models as store

    print(f"in {store.store()}:")
    for name, model in store.catalogue().items():
        print(f"  {name:<36} {model.bytes / 1e6:>7,.0f} MB  {model.licence:<12} {store.status(name)}")


@models.command("fetch")
def fetch_models(names: ModelNames = None) -> None:
    """Fetch model files and verify them against their publishers' hashes; goes on where an earlier try stopped.

    Example: supertiny models fetch smollm2-135m-instruct-q4_1
    """
    from supertiny.core import models as store
    from supertiny.core.progress import Progress

    progress = Progress()
    for name in _known(names):
        with progress.task(f"fetching {name}", store.model_of(name).bytes / 1e6, "MB") as tick:
            path = store.fetch(name, _megabytes(tick), progress.note)
        print(f"{name}: verified, {path}")


@models.command("verify")
def verify_models(names: ModelNames = None) -> None:
    """Hash model files anew; a wrong one is named and moved aside. Without names: those that are here.

    Example: supertiny models verify
    """
    from supertiny.core import models as store

    here = [name for name in _known(names) if names or store.status(name) in {"verified", "unverified"}]
    wrong: list[UserError] = []
    for name in here:
        try:
            print(f"{name}: right, {store.verify(name)}")
        except UserError as error:
            wrong.append(error)
    if wrong:
        raise UserErrors(wrong)


def _megabytes(tick: Callable[[float], None]) -> Callable[[int, int, str], None]:
    """Turns the store's `bytes so far` into the steps that a progress line wants."""
    told = 0.0

    def advance(bytes_done: int, bytes_total: int, what: str) -> None:
        nonlocal told
        tick(bytes_done / 1e6 - told)
        told = bytes_done / 1e6

    return advance


def _known(names: list[str] | None) -> list[str]:
    from supertiny.core import models as store

    return [store.model_of(name).name for name in names] if names else list(store.catalogue())


def _recipe_of(path: Path) -> Path:
    return path / "recipe.yaml" if path.is_dir() else path


def _finished(run: Path, stage: str) -> Path:
    """A run folder in which the stage is done. Raises UserError."""
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}", "make one with `supertiny run RECIPE`")
    if not (run / stage).is_dir():
        hint = f"finish it with `supertiny run {run / 'recipe.yaml'}`"
        raise UserError(f"{run}: its stage {stage} is not done", hint)
    return run


def _show_results(run: Path, task: Path) -> None:
    """The table that ends a run, where the report is, and what to type next."""
    report = run / "report" / "report.json"
    if not report.exists():
        print(f"results so far: {run}")
        return
    from supertiny.core.files import read_json
    from supertiny.core.leaks import asked_text
    from supertiny.core.task import load_task
    from supertiny.report.terminal import print_table

    print_table(read_json(report), _console())
    print(f"\nreport:  {run / 'report' / 'report.html'}")
    print(f"serve:   {_typed()} serve {shlex.quote(str(run))}")
    asked = asked_text(load_task(task).valid[0].request.messages)
    print(f"ask:     {_typed()} ask {shlex.quote(str(run))} {shlex.quote(asked)}")


def _console() -> Console:
    """A console that is not cut to 80 columns where the output goes to a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)


def _lines(error: UserError) -> Iterator[str]:
    """One line per problem, however they are nested."""
    if isinstance(error, UserErrors):
        for each in error.errors:
            yield from _lines(each)
    else:
        yield " ".join(str(error).split())


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Exit status: 0 well, 1 a bug, with its traceback, 2 a user's mistake, 130 Ctrl-C."""
    try:
        status = app(args=arguments, prog_name="supertiny", standalone_mode=False)
    except UserError as error:
        for line in _lines(error):
            print(f"error: {line}", file=sys.stderr)
        status = USER_ERROR
    except typer.TyperException as error:  # a wrong option or argument
        message = " ".join(error.format_message().split())
        if message:  # it is empty where no command was given and help was shown
            print(f"error: {message} (see `supertiny --help`, or --help after the command)", file=sys.stderr)
        status = USER_ERROR
    except KeyboardInterrupt:
        status = STOPPED
    except Exception:
        traceback.print_exc()
        status = BUG
    if status == STOPPED:
        print("stopped; run the same command to go on", file=sys.stderr)
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
