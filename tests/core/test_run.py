"""A run folder: one process at a time, stages that are whole or not there, nothing done twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest

from supertiny import pipeline
from supertiny.core import run as run_module
from supertiny.core.errors import UserError
from supertiny.core.ledger import Ledger
from supertiny.core.progress import Progress
from supertiny.core.recipe import STAGES, Recipe, read_recipe
from supertiny.core.run import Run, open_folder, package_versions
from tests.small_task import small_task, write_task

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pipeline.__file__).parents[1])}
HOLD = dedent("""
    import sys
    from pathlib import Path
    from supertiny.core.recipe import Recipe
    from supertiny.core.run import open_folder
    free = open_folder(Recipe("x", Path("task"), Path(sys.argv[1])))
    print("held", flush=True)
    sys.stdin.read()
""")


def recipe(folder: Path, **more: Any) -> Recipe:
    return Recipe("x", Path("task"), folder, **more)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = tmp_path / "run"
    ledger = Ledger(folder / "ledger.sqlite")
    return Run(folder, recipe(folder, seed=7), small_task(), ledger, Progress(quiet=True))


def write(name: str, text: str = "x") -> Callable[[Path], dict[str, Any]]:
    def work(folder: Path) -> dict[str, Any]:
        (folder / name).write_text(text)
        return {"wrote": name}

    return work


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if "sqlite" not in path.name}


def test_a_second_process_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}$|in use by process {holder.pid} "):
            open_folder(recipe(folder))
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    free = open_folder(recipe(folder))  # a killed process holds nothing
    assert (folder / "lock").read_text() == str(os.getpid())
    second = subprocess.run(command, env=ENVIRONMENT, input=b"", capture_output=True, check=False)
    assert second.returncode == 1
    assert f"in use by process {os.getpid()}".encode() in second.stderr
    free()
    assert subprocess.run(command, env=ENVIRONMENT, input=b"", capture_output=True, check=False).returncode == 0


def test_the_recipe_is_written_as_it_is_run(tmp_path: Path) -> None:
    task = tmp_path / "task"
    task.mkdir()
    asked = Recipe("x", task, tmp_path / "run", seed=5, sections={"prototype": {"pool_rows": 3}})
    open_folder(asked)()
    again = read_recipe(tmp_path / "run" / "recipe.yaml")
    assert (again.seed, again.sections["prototype"], again.folder) == (5, {"pool_rows": 3}, tmp_path / "run")


def test_a_stages_folder_appears_when_it_is_whole(run: Run) -> None:
    def work(folder: Path) -> dict[str, Any]:
        (folder / "rows").write_text("x")
        assert not (run.folder / "prototype").exists()
        return {"rows": 1}

    run.do("prototype", "key", work)
    assert names(run.folder) == {"prototype", "manifest.json"}
    assert (run.folder / "prototype" / "rows").read_text() == "x"
    assert run.manifest["stages"]["prototype"]["summary"] == {"rows": 1}
    assert run.manifest["seed"] == 7
    assert run.manifest["task"] == {"name": "small", "hash": "0"}
    assert run.manifest["versions"] == package_versions()


def test_a_stage_that_fails_leaves_what_was_there_and_goes_on_where_it_was(run: Run) -> None:
    run.do("prototype", "first", write("old"))

    def fails(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("x")
        raise UserError("in the middle")

    with pytest.raises(UserError, match="in the middle"):
        run.do("prototype", "second", fails)
    assert names(run.folder / "prototype") == {"old"}
    assert run.is_done("prototype", "first")
    assert not run.is_done("prototype", "second")
    run.do("prototype", "second", write("rest"))
    assert names(run.folder / "prototype") == {"half", "rest"}
    assert run.is_done("prototype", "second")
    assert not run.is_done("prototype", "first")
    assert names(run.folder) == {"prototype", "manifest.json"}


def test_what_other_settings_left_half_done_is_removed(run: Run) -> None:
    for stale in (".prototype.other", ".transfer.other"):
        (run.folder / stale).mkdir()
        (run.folder / stale / "half").write_text("x")
    run.do("prototype", "key", write("rows"))
    assert names(run.folder) == {"prototype", "manifest.json", ".transfer.other"}
    assert names(run.folder / "prototype") == {"rows"}


def test_a_kill_between_the_record_and_the_rename_loses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.do("prototype", "first", write("old"))

    rename = Path.rename

    def killed(folder: Path, target: Path) -> None:
        if target.name == "prototype":
            raise KeyboardInterrupt
        rename(folder, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run.do("prototype", "second", write("new"))
    assert not run.is_done("prototype", "second")
    kept = []
    run.do("prototype", "second", lambda folder: kept.extend(names(folder)) or {})
    assert kept == ["new"], "the stage finds what it had"
    assert run.is_done("prototype", "second")


def test_a_kill_while_the_old_folder_is_removed_loses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.do("prototype", "first", write("old"))

    def killed(folder: Path) -> None:
        (folder / "old").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run.do("prototype", "second", write("new"))
    assert not run.is_done("prototype", "first"), "a half folder is not taken for the old result"
    assert run.is_done("prototype", "second")
    assert names(run.folder / "prototype") == {"new"}
    run.do("prototype", "third", write("newest"))
    assert names(run.folder) == {"prototype", "manifest.json"}


class Rooms:
    """Five stages that write what they were given, and count how often they work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worked: list[str] = []
        known = pipeline.importlib.import_module

        def open_room(name: str, package: str | None = None) -> Any:
            room, _, part = name.removeprefix("supertiny.").partition(".")
            return SimpleNamespace(run=self.stage(room)) if part == "stage" and room in STAGES else known(name, package)

        monkeypatch.setattr(pipeline.importlib, "import_module", open_room)

    def stage(self, name: str) -> Callable[..., dict[str, Any]]:
        def work(settings: Any, run: Run, folder: Path, *more: Any) -> dict[str, Any]:
            self.worked.append(name)
            before = STAGES[: STAGES.index(name)]
            assert all((run.folder / stage / "done.json").exists() for stage in before)
            assert bool(more) == (name == "report")
            (folder / "done.json").write_text(json.dumps(str(settings)))
            return {"settings": str(settings)}

        return work

    def took(self) -> list[str]:
        worked, self.worked = self.worked, []
        return worked


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    write_task(tmp_path / "task")
    (tmp_path / "recipe.yaml").write_text(f"task: task\nfolder: {tmp_path / 'run'}\nserve: {{}}\n")
    return tmp_path / "recipe.yaml"


def execute(asked: Path, *overrides: str, only: str | None = None) -> Path:
    return pipeline.execute(read_recipe(asked, overrides), only=only, progress=Progress(quiet=True))


def test_same_settings_same_key_nothing_to_do(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = Rooms(monkeypatch)
    folder = execute(asked)
    assert rooms.took() == list(STAGES)
    assert {path.name for path in folder.iterdir()} >= {
        "recipe.yaml",
        "manifest.json",
        "ledger.sqlite",
        "lock",
        *STAGES,
    }
    execute(asked)
    assert rooms.took() == []


def test_a_changed_setting_redoes_its_stage_and_what_follows(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = Rooms(monkeypatch)
    execute(asked)
    rooms.took()
    execute(asked, "transfer.evaluations=1")
    assert rooms.took() == list(STAGES[1:])
    execute(asked, "transfer.evaluations=1", "seed=9")
    assert rooms.took() == list(STAGES)
    with (asked.parent / "task" / "labelled.jsonl").open("a") as rows:
        rows.write('{"text": "hello there", "calls": []}\n')
    execute(asked, "transfer.evaluations=1", "seed=9")
    assert rooms.took() == list(STAGES)


def test_a_raised_budget_redoes_nothing(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = Rooms(monkeypatch)
    execute(asked, "prototype.budget.minutes=1")
    rooms.took()
    execute(asked, "prototype.budget.minutes=2")
    assert rooms.took() == []


def test_only_one_stage(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = Rooms(monkeypatch)
    with pytest.raises(UserError, match=r"prototype is not there"):
        execute(asked, only="transfer")
    execute(asked, only="prototype")
    execute(asked, only="transfer")
    assert rooms.took() == ["prototype", "transfer"]
    with pytest.raises(UserError, match="made with other settings"):
        execute(asked, "prototype.plain_rows=5", only="transfer")
    assert rooms.took() == []
    with pytest.raises(UserError) as told:
        execute(asked, only="tranfer")
    assert "'transfer'" in told.value.hint


def test_the_lock_is_free_again_after_a_mistake(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = Rooms(monkeypatch)
    folder = asked.parent / "run"
    folder.mkdir()
    (folder / "ledger.sqlite").write_text("this is no ledger at all, but a text\n" * 30)
    with pytest.raises(UserError, match="not a ledger"):
        execute(asked)
    (folder / "ledger.sqlite").unlink()
    execute(asked)
    assert rooms.took() == list(STAGES)


@dataclass(frozen=True)
class Empty:
    """Settings of a stage that has none."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.gguf"),
        shutil.Error([("a", "b", f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}: 'b'")]),
    ],
    ids=["writing", "copying a folder"],
)
def test_a_full_disk_in_any_stage_is_told_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline.importlib, "import_module", lambda name: SimpleNamespace(run=full))
    with pytest.raises(UserError, match=r"compress: the disk of .*run is full \(free some disk space"):
        pipeline._work("compress", {"compress": Empty()}, run, run.folder)


def test_other_errors_of_the_system_stay_bugs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x")

    monkeypatch.setattr(pipeline.importlib, "import_module", lambda name: SimpleNamespace(run=broken))
    with pytest.raises(FileNotFoundError):
        pipeline._work("compress", {"compress": Empty()}, run, run.folder)


def test_another_tasks_run_is_not_overwritten(tmp_path: Path) -> None:
    for name in ("mine", "yours"):
        write_task(tmp_path / name / "home")
    mine, yours = (Recipe("home", tmp_path / name / "home", tmp_path / "run") for name in ("mine", "yours"))
    open_folder(mine)()
    open_folder(mine)()
    with pytest.raises(UserError, match=r"holds the run of another task, .*mine.home.*--folder"):
        open_folder(yours)
    shutil.rmtree(tmp_path / "mine")  # a task that was moved takes its run along
    open_folder(yours)()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file.run: Not a directory .*--folder"):
        open_folder(recipe(tmp_path / "file" / "run"))

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_module, "write_text", full)
    with pytest.raises(UserError, match="No space left"):
        open_folder(recipe(tmp_path / "run"))
    monkeypatch.undo()
    open_folder(recipe(tmp_path / "run"))()  # and the lock is free again


def test_seconds_of_an_attempt_that_was_killed_count(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_CLOCK_SECONDS", 0.01)

    def killed(folder: Path) -> dict[str, Any]:
        while not (folder / ".seconds").exists():
            pass
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.do("prototype", "key", killed)
    beside = run.folder / ".prototype.key" / ".seconds"
    assert float(beside.read_text()) > 0
    beside.write_text("1000")  # as if it had worked so long
    run.do("prototype", "key", write("rows"))
    assert 1000 <= run.manifest["stages"]["prototype"]["seconds"] < 1100
    assert names(run.folder / "prototype") == {"rows"}
