"""What people type and what they read: exit statuses, one line per mistake, hints."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest

from supertiny import __version__, cli, method_pages, pipeline
from supertiny.compress import demands
from supertiny.core import models
from supertiny.core.errors import UserError, UserErrors
from supertiny.core.files import write_json
from supertiny.core.recipe import SEARCH, STAGES, read_recipe
from supertiny.core.task import load_task
from supertiny.report import terminal

PLACES = ("attic", "barn", "cellar", "den", "east", "field", "garden", "hall", "island", "jungle")
COMMANDS = [
    "new",
    "export",
    "check",
    "run",
    "optimise",
    "serve",
    "ask",
    "compare",
    "compress",
    "methods",
    "show",
    "models",
]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Any:
    """Types a command; gives (exit status, output, error lines)."""

    def type_command(*arguments: object) -> tuple[int, str, list[str]]:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err.splitlines()

    return type_command


def test_version(typed: Any) -> None:
    assert typed("--version") == (0, f"supertiny {__version__}\n", [])


def test_help_names_every_command(typed: Any) -> None:
    status, out, err = typed("--help")
    assert (status, err) == (0, [])
    assert all(f" {command} " in out for command in COMMANDS)


@pytest.mark.parametrize(
    "command", [[c] for c in COMMANDS if c != "models"] + [["models", c] for c in ("list", "fetch", "verify")]
)
def test_help_of_every_command_has_an_example(typed: Any, command: list[str]) -> None:
    status, out, _ = typed(*command, "--help")
    assert status == 0
    assert f"Example: supertiny {' '.join(command)}" in " ".join(out.split())


def test_no_command_shows_help_and_no_error(typed: Any) -> None:
    status, out, err = typed()
    assert status == 2
    assert "Usage: supertiny" in out
    assert err == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rum"], "error: No such command 'rum'. Did you mean 'run'? (see"),
        (["run"], "error: Missing argument 'RECIPE'. (see"),
        (["run", "nowhere.yaml"], "error: nowhere.yaml is not there (give the path of a recipe"),
        (["methods", "divergence"], "error: there is no family 'divergence' (did you mean 'divergences'?)"),
        (["show", "forward_lk"], "error: there is no method 'forward_lk' (did you mean 'forward_kl'?)"),
        (["show", "transfr"], "error: there is no method 'transfr' (did you mean 'transfer'?)"),
        (["compress", "nowhere"], "error: nowhere is not there (give the path of a recipe, or of a folder that holds"),
        (["show", "divergence/forward_kl"], "error: there is no family 'divergence' (did you mean 'divergences'?)"),
        (["models", "verify", "nix"], "error: there is no model 'nix' in the catalogue (known: "),
        (["serve", "nowhere"], "error: there is no run folder nowhere (make one with `supertiny run RECIPE`)"),
        (["ask", "nowhere", "hello"], "error: there is no run folder nowhere"),
        (["compare", "nowhere", "nowhere"], "error: there is no run folder nowhere"),
        (["new", "task"], "error: new needs one of --example, --from-logs, --from-csv, --from-dataset, --tools-from"),
        (["new", "--example", "smart_home"], "error: new needs the folder to make"),
        (["new", "x", "--from-csv", "nowhere.csv"], "error: nowhere.csv is not there (give a file of rows: .csv"),
        (["new", "x", "--from-csv", "rows.csv", "--test-split", "test"], "error: --test-split is for a data set (give"),
        (
            ["new", "x", "--from-csv", "a.csv", "--sizes", "labeled=3"],
            "error: --sizes: there is no split 'labeled' (did",
        ),
        (
            ["new", "x", "--from-csv", "a.csv", "--sizes", "test=0"],
            "error: --sizes: 'test=0' is not of the form SPLIT=",
        ),
        (["export", "nowhere", "--to", "x.jsonl"], "error: there is no folder nowhere (give a run, such as"),
        (["export", "nowhere", "--to", "x", "--as", "mesages"], "error: --as: there is no shape 'mesages' (did you"),
        (["export", "nowhere"], "error: Missing option '--to'. (see"),
        (["serve", "x", "--port", "70000"], "error: Invalid value for '--port'"),
    ],
)
def test_a_mistake_is_one_line_with_a_hint(typed: Any, arguments: list[str], line: str) -> None:
    status, out, err = typed(*arguments)
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith(line)


def test_all_mistakes_of_a_recipe_are_shown_at_once(typed: Any, tmp_path: Path, task_folder: Path) -> None:
    (task_folder / "valid.jsonl").write_text('{"text": "half a row\n', encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"task: {task_folder}\nprototype: {{stepz: [fill]}}\nserve: {{port_of_call: 1}}\n", encoding="utf-8"
    )
    status, out, err = typed("check", recipe)
    assert (status, out) == (2, "")
    assert len(err) >= 3
    assert all(line.startswith("error: ") for line in err)
    text = "\n".join(err)
    assert "prototype: there is no setting 'stepz' (did you mean 'steps'?)" in text
    assert "serve: there is no setting 'port_of_call'" in text
    assert "valid.jsonl:1" in text


def test_a_recipe_without_mistakes_checks(typed: Any, tmp_path: Path, task_folder: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: lamps\ntask: {task_folder}\n", encoding="utf-8")
    assert typed("check", recipe) == (0, f"{recipe}: no mistakes; its results go to runs/lamps\n", [])
    assert typed("check", recipe, "seed=few")[0] == 2


def test_a_bug_shows_its_traceback(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "catalogue", lambda: {}["lost"])
    status, _, err = typed("models", "list")
    assert status == 1
    assert err[0].startswith("Traceback")
    assert err[-1] == "KeyError: 'lost'"


def test_ctrl_c_says_how_to_go_on(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "load_recipe", stopped)
    status, _, err = typed("check", "recipe.yaml")
    assert status == 130
    assert err[-1] == "stopped; run the same command to go on"


def test_nested_mistakes_are_flat_lines(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: object) -> None:
        raise UserErrors([UserError("first\n  line", "mend it"), UserErrors([UserError("second")])])

    monkeypatch.setattr(pipeline, "load_recipe", mistaken)
    assert typed("check", "recipe.yaml") == (2, "", ["error: first line (mend it)", "error: second"])


def test_run_hands_its_options_on(typed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    asked = SimpleNamespace(task=tmp_path)

    def load(path: Path, overrides: list[str]) -> Any:
        seen.append((path, overrides))
        return asked

    def execute(recipe: Any, only: str | None, estimate: bool) -> Path:
        seen.append((recipe, only, estimate))
        return tmp_path

    monkeypatch.setattr(pipeline, "load_recipe", load)
    monkeypatch.setattr(pipeline, "execute", execute)
    # a task folder stands for the recipe in it
    status, out, _ = typed("run", tmp_path, "seed=8", "transfer.epochs=1", "--folder", "runs/b", "--only", "transfer")
    assert status == 0
    assert seen[0] == (tmp_path / "recipe.yaml", ["seed=8", "transfer.epochs=1", "folder=runs/b"])
    assert seen[1] == (asked, "transfer", False)
    assert out == f"results so far: {tmp_path}\n"


def test_a_run_ends_with_lines_that_can_be_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task_folder: Path
) -> None:
    rows = (task_folder / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(rows[0]) | {"text": "what's on in the kitchen?"}
    (task_folder / "valid.jsonl").write_text("\n".join([json.dumps(first), *rows[1:]]), encoding="utf-8")
    write_json(tmp_path / "my run" / "report" / "report.json", {})
    monkeypatch.setattr(terminal, "print_table", lambda *_: None)
    monkeypatch.setattr(sys, "argv", [".venv/bin/supertiny", "run"])
    monkeypatch.setattr(shutil, "which", lambda _: None)
    cli._show_results(tmp_path / "my run", task_folder)
    serve, ask = capsys.readouterr().out.splitlines()[-2:]
    assert shlex.split(serve)[1:] == [".venv/bin/supertiny", "serve", str(tmp_path / "my run")]
    assert shlex.split(ask)[1:] == [".venv/bin/supertiny", "ask", str(tmp_path / "my run"), "what's on in the kitchen?"]
    monkeypatch.setattr(shutil, "which", lambda _: str(Path(".venv/bin/supertiny").resolve()))
    assert cli._typed() == "supertiny"


def test_new_from_an_example_and_the_line_to_go_on(typed: Any, tmp_path: Path) -> None:
    status, out, err = typed("new", tmp_path / "mine", "--example", "smart_home")
    assert (status, err) == (0, [])
    assert (tmp_path / "mine" / "tools.json").exists()
    assert out == f"next:  supertiny run {tmp_path / 'mine' / 'recipe.yaml'}\n"
    for name, run in (("recipe.yaml", "mine"), ("recipe_quick.yaml", "mine_quick")):
        recipe = read_recipe(tmp_path / "mine" / name)
        assert (recipe.name, recipe.task, recipe.folder) == (run, tmp_path / "mine", Path("runs") / run)
        assert (tmp_path / "mine" / name).read_text(encoding="utf-8").startswith("# "), "comments stay"
    again, _, err = typed("new", tmp_path / "mine", "--example", "smart_home")
    assert again == 2
    assert "is there already" in err[0]


def test_new_tools_from_labelled_rows(typed: Any, task_folder: Path) -> None:
    (task_folder / "tools.json").unlink()
    status, out, _ = typed("new", "--tools-from", task_folder / "labelled.jsonl")
    assert status == 0
    assert out.startswith(f"{task_folder / 'tools.json'}: 1 functions")
    (tool,) = json.loads((task_folder / "tools.json").read_text(encoding="utf-8"))
    assert tool["function"]["name"] == "switch_lamp"
    assert set(tool["function"]["parameters"]["required"]) == {"room", "state"}
    assert typed("new", "--tools-from", task_folder / "labelled.jsonl")[0] == 2


def test_new_from_a_table_in_one_command(typed: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    texts = [f"where is the {animal} of the {place}" for animal in ("cat", "dog", "owl") for place in PLACES]
    lines = [f"{text};{'hot' if n % 2 else 'cold'}" for n, text in enumerate([*texts, texts[0]])]
    rows.write_text("question;intent\n" + "\n".join(lines), encoding="utf-8")
    columns = ["--text", "question", "--label", "intent", "--sizes", "labelled=10"]
    status, out, err = typed("new", tmp_path / "task", "--from-csv", rows, *columns)
    assert (status, err) == (0, [])
    first, then = out.splitlines()
    assert first.startswith(f"{tmp_path / 'task'}: 10 labelled, ")
    assert first.endswith("; 1 left out: said twice, broken, or more than was asked for")
    assert then == f"next:  supertiny run {tmp_path / 'task' / 'recipe.yaml'}"
    (tool,) = load_task(tmp_path / "task").tools
    assert tool.parameters["properties"]["label"]["enum"] == ["cold", "hot"]
    status, out, err = typed("check", tmp_path / "task")
    assert (status, err) == (0, [])
    assert out == f"{tmp_path / 'task' / 'recipe.yaml'}: no mistakes; its results go to runs/task\n"


def test_mistakes_in_a_table_are_lines_with_places(typed: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "x,y\n" * 9 + "one,two,three\n", encoding="utf-8")
    status, out, err = typed("new", tmp_path / "task", "--from-csv", rows)
    assert (status, out) == (2, "")
    assert err == [
        f"error: {rows}:11: too many cells (the header has 2; one that holds ',' stands in quotes: \"...\")",
        f"error: {rows}: 1 broken rows in all",
    ]
    rows.write_text("text,label\nx,y\n", encoding="utf-8")
    status, _, err = typed("new", tmp_path / "task", "--from-csv", rows, "--text", "txet", "--label", "labels")
    assert status == 2
    assert len(err) == 2
    assert err[0].endswith("has no column 'txet' (did you mean 'text'?)")
    assert err[1].endswith("has no column 'labels' (did you mean 'label'?)")


def test_export_says_what_it_wrote_and_who_reads_it(typed: Any, tmp_path: Path, task_folder: Path) -> None:
    target = tmp_path / "out.jsonl"
    status, out, err = typed("export", task_folder, "--to", target, "--as", "sharegpt", "--split", "valid")
    assert (status, err) == (0, [])
    assert out.splitlines()[0] == f"{target}: 2 rows of valid, as sharegpt"
    assert "read by:  LLaMA-Factory" in out
    for style in ("messages", "axolotl"):
        line = typed("export", task_folder, "--to", tmp_path / f"my {style}.jsonl", "--as", style)[1].splitlines()[-1]
        assert f'"{tmp_path / f"my {style}.jsonl"}"' in line
        assert "FILE" not in line
    assert len(target.read_text(encoding="utf-8").splitlines()) == 2
    assert typed("export", task_folder, "--to", target)[0] == 2


def test_check_names_steps_that_the_engine_cannot_serve(typed: Any, tmp_path: Path, task_folder: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    engine = (
        "{method: openai, model: m, base_url: 'localhost:1', dollars_per_million_in: 0, dollars_per_million_out: 0}"
    )
    steps = "[{method: route, by: logprob}, fill, judge]"
    recipe.write_text(f"task: {task_folder}\nprototype: {{engine: {engine}, steps: {steps}}}\n", encoding="utf-8")
    status, out, err = typed("check", recipe)
    assert (status, out, len(err)) == (2, "", 3)
    address, route, judge = err
    assert address.startswith("error: prototype.engine: engines.openai.base_url: not an address: 'localhost:1'")
    assert route.startswith("error: prototype.steps.0: route needs log-probabilities of given texts (token_scores)")
    assert judge.startswith("error: prototype.steps.2: judge has no guidelines to judge by (write them into")


def test_check_and_run_tell_what_is_hardly_meant(
    typed: Any, tmp_path: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(demands, "taken_back", lambda own, student, grid: asked.append((student, grid)) or "it is lost")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"task: {task_folder}\ntransfer: {{quantization_aware: q4_0}}\n", encoding="utf-8")
    assert "  note: compress.steps: it is lost\n" in typed("check", recipe)[1]
    assert "note: compress.steps: it is lost" in typed("run", recipe, "--estimate")[2]
    assert set(asked) == {("smollm2-135m-instruct-q4_1", "q4_0")}


def test_methods_lists_each_family_with_its_methods(typed: Any) -> None:
    lines = typed("methods")[1].splitlines()
    assert "divergences" in lines
    assert any(line.split()[:2] == ["forward_kl", "KL(teacher"] for line in lines)
    (title, *rows) = typed("methods", "divergences")[1].splitlines()
    assert title == "divergences"
    assert [row.split()[0] for row in rows] == sorted(row.split()[0] for row in rows)


def test_show_tells_settings_and_how_a_recipe_names_it(typed: Any) -> None:
    out = typed("show", "jensen_shannon")[1]
    assert "divergences/jensen_shannon" in out
    assert "Paper: " in out
    assert "teacher_share: float" in out
    assert "(default 0.5)" in out
    assert "{method: jensen_shannon, teacher_share: 0.5}" in out


def test_show_names_the_family_of_a_setting_that_is_a_method(typed: Any) -> None:
    assert "  divergence: a method of divergences  (default 'forward_kl')" in typed("show", "distil")[1]
    assert "  steps: methods of steps  (default ('fill',))" in typed("show", "cascade")[1]
    assert "  grid: Literal['', Literal['q4_0', " in typed("show", "gptq")[1], (
        "what a file calls a type is told in full"
    )


@pytest.mark.parametrize("stage", [*STAGES, SEARCH])
def test_show_tells_every_setting_of_a_section(typed: Any, stage: str) -> None:
    """What the source says, by what the stage is really given."""
    module = "supertiny.prototype.search" if stage == SEARCH else f"supertiny.{stage}"
    schema = importlib.import_module(f"{module}.settings").Settings
    ahead = [(stage, schema)]
    for place, kind in ahead:
        status, out, err = typed("show", place)
        assert (status, err) == (0, [])
        assert out.startswith(f"{place}: a section of a recipe\n")
        for field in fields(kind):
            (line,) = (line for line in out.splitlines() if line.startswith(f"  {field.name}: "))
            inner = get_type_hints(kind)[field.name]
            if is_dataclass(inner):
                assert line == f"  {field.name}: see {place}.{field.name}  (default {{}})"
                ahead.append((f"{place}.{field.name}", inner))
            elif field.default is not MISSING:
                assert line.endswith(f"(default {field.default!r})")
    assert {setting.doc != "" for setting in method_pages.settings_of(method_pages.sections()[stage])} == {True}


def test_sections_within_sections_are_found_by_their_own_name_and_on_the_page(typed: Any) -> None:
    out = typed("show", "gate")[1]
    assert out.startswith("compress.gate: a section of a recipe")
    assert "  margin: float, ge=0, le=1  (default 0.05)" in out
    assert "typed after a command as compress.gate.margin=VALUE" in out
    page = method_pages.markdown().partition("## Sections of a recipe\n")[2]
    assert "### compress.gate\n" in page
    assert "| `valid_rows` | `int \\| None, ge=1` | `None` |" in page


def test_models_list_says_what_is_here(typed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUPERTINY_MODELS", str(tmp_path))
    status, out, _ = typed("models", "list")
    assert status == 0
    assert out.startswith(f"in {tmp_path}:")
    assert "smollm2-135m-instruct-q4_1" in out
    assert "absent" in out
    status, _, err = typed("models", "verify", "smollm2-135m-instruct-q4_1")
    assert status == 2
    assert "is not there (supertiny models fetch smollm2-135m-instruct-q4_1)" in err[0]


def test_fetch_reports_progress_in_megabytes(typed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(name: str, progress: Any, note: Any) -> Path:
        progress(50_000_000, 98_000_000, "from the hub")
        note(f"{name}: on its way")
        return tmp_path / name

    monkeypatch.setattr(models, "fetch", fetch)
    status, out, err = typed("models", "fetch", "smollm2-135m-instruct-q4_1")
    assert (status, out) == (0, f"smollm2-135m-instruct-q4_1: verified, {tmp_path / 'smollm2-135m-instruct-q4_1'}\n")
    assert "smollm2-135m-instruct-q4_1: on its way" in " ".join(err)
