"""The commands that make task folders and hand examples on: `new` and `export`. They need core alone."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supertiny.core.errors import UserError

if TYPE_CHECKING:
    from supertiny.core.tables import Table
    from supertiny.core.task_tables import Columns

_SOURCES = ("--example", "--from-logs", "--from-csv", "--from-dataset", "--tools-from")

Option = typer.Option
ChatLogs = Annotated[Path | None, Option(metavar="FILE", help="Chat logs, one conversation a line.")]
TableFile = Annotated[Path | None, Option(metavar="FILE", help="A table: CSV, TSV, JSON, JSONL; Parquet with pyarrow.")]
DataSet = Annotated[
    str | None, Option(metavar="DATA", help="A data set: file, folder, or OWNER/NAME on the Hugging Face hub.")
]
LabelledFile = Annotated[
    Path | None, Option(metavar="FILE", help="Labelled rows; writes tools.json beside them, or into FOLDER.")
]
Text = Annotated[str, Option(metavar="COLUMN", help="What a user says; text if not given.")]
Label = Annotated[str, Option(metavar="COLUMN", help="Its class: makes classify(label).")]
Arguments = Annotated[
    list[str] | None, Option(metavar="COLUMN", help="What to extract: makes extract(...); may be repeated.")
]
Calls = Annotated[str, Option(metavar="COLUMN", help="Calls as JSON, a list of name and arguments.")]
Function = Annotated[str, Option(metavar="NAME", help="Another name than classify or extract.")]
TestSplit = Annotated[str, Option(metavar="SPLIT", help="The data set's split that is the task's test.")]


def new(
    folder: Annotated[Path | None, typer.Argument(help="The new task's folder.")] = None,
    example: Annotated[str | None, Option(metavar="NAME", help="Copy this example: task and recipe.")] = None,
    from_logs: ChatLogs = None,
    from_csv: TableFile = None,
    from_dataset: DataSet = None,
    tools_from: LabelledFile = None,
    text: Text = "",
    label: Label = "",
    argument: Arguments = None,
    calls: Calls = "",
    function: Function = "",
    split: Annotated[str, Option(help="The data set's split whose rows are taken.")] = "train",
    test_split: TestSplit = "",
    config: Annotated[str, Option(metavar="NAME", help="The data set's subset.")] = "",
    sizes: Annotated[str, Option(metavar="SPLIT=ROWS,...", help="Rows of the task's splits.")] = "",
    seed: Annotated[int, Option(help="Decides which row goes to which split.")] = 0,
    skip_broken: Annotated[bool, Option("--skip-broken", help="Leave out table rows that are broken.")] = False,
) -> None:
    """Make a task folder: from an example, chat logs (messages with tool_calls), a table, or a data set.

    Example: supertiny new my_task --from-logs logs.jsonl, or
    supertiny new my_task --from-csv rows.csv --text question --label intent --sizes labelled=200,valid=100
    """
    given = (example, from_logs, from_csv, from_dataset, tools_from)
    if len(given) - given.count(None) != 1:
        raise UserError(f"new needs one of {', '.join(_SOURCES)}", "for instance --example smart_home")
    if tools_from is not None:
        _write_tools(tools_from, (folder or tools_from.parent) / "tools.json")
        return
    if folder is None:
        raise UserError("new needs the folder to make", "for instance: supertiny new my_task --example smart_home")
    if example is not None:
        _copy(example, folder)
        return
    from supertiny.core.task_tables import Columns

    columns = Columns(text, label, tuple(argument or ()), calls, function)
    if from_logs is not None:
        _from_logs(from_logs, folder, columns, seed, sizes)
    else:
        tables = _tables(from_csv, from_dataset, split, test_split, config)
        _from_tables(tables, folder, columns, seed, sizes, skip_broken)


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN|TASK", help="A run folder, or a task's.")],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The file to write, a JSON object a line.")],
    style: Annotated[
        str, typer.Option("--as", metavar="SHAPE", help="messages, openai, sharegpt, prompt_completion or alpaca.")
    ] = "messages",
    split: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="train of a run (default), labelled of a task (default), valid.")
    ] = None,
) -> None:
    """Write examples as other trainers read them.

    messages: TRL, Axolotl (type: chat_template), Unsloth (apply_chat_template with tools).

    openai: the same with arguments as JSON text, for OpenAI's fine-tuning.

    sharegpt: LLaMA-Factory (formatting: sharegpt, with columns for system and tools).

    prompt_completion: TRL, with the loss on the answer alone.

    alpaca: Axolotl (type: alpaca), and LLaMA-Factory's default.

    Example: supertiny export runs/smart_home --to train.jsonl --as sharegpt
    """
    from supertiny.core.export import READERS
    from supertiny.core.export import export as write

    if split == "test":
        print("warning: rows of test measure a model; one that is trained on them cannot be measured", file=sys.stderr)
    done = write(source, to, style, split)
    left = f"; {done.unanswered} without an answer left out" if done.unanswered else ""
    print(f"{to}: {done.rows} rows of {done.split}, as {style}{left}")
    print(f"read by:  {READERS[style]}")


def typed_command() -> str:
    """The command as it can be typed here: by its path where the shell would not find it by its name."""
    called, found = Path(sys.argv[0]), shutil.which("supertiny")
    if called.name != "supertiny" or (found and Path(found).resolve() == called.resolve()):
        return "supertiny"
    return shlex.quote(str(called))


def _copy(example: str, folder: Path) -> None:
    from supertiny.core.task_import import copy_example

    copy_example(example, folder)
    print(f"next:  {typed_command()} run {shlex.quote(str(folder / 'recipe.yaml'))}")


def _from_logs(logs: Path, folder: Path, columns: Columns, seed: int, sizes: str) -> None:
    from supertiny.core.task_import import new_from_logs
    from supertiny.core.task_splits import read_sizes

    if columns != type(columns)():
        raise UserError("--text, --label, --argument, --calls and --function are for tables", "leave them out")
    _say(folder, new_from_logs(logs, folder, seed, read_sizes(sizes)))


def _tables(csv: Path | None, data: str | None, split: str, test_split: str, config: str) -> list[Table]:
    """The rows, and those of the data set's own test where it is named."""
    from supertiny.core.hub_tables import read_dataset
    from supertiny.core.tables import read_table

    source = csv if csv is not None else Path(str(data))
    if test_split and source.is_file():
        raise UserError(f"--test-split: {source} is one file", "give --from-dataset the folder that holds both splits")
    if csv is not None:
        return [read_table(csv)]
    return [read_dataset(str(data), name, config) for name in (split, test_split) if name]


def _from_tables(tables: list[Table], folder: Path, columns: Columns, seed: int, sizes: str, skip_broken: bool) -> None:
    from supertiny.core.task_splits import read_sizes
    from supertiny.core.task_tables import new_from_table

    table, test = tables[0], tables[1] if len(tables) > 1 else None
    rows = new_from_table(table, columns, folder, seed, read_sizes(sizes), skip_broken, test)
    left = sum(len(one.rows) for one in tables) - sum(rows.values())
    reasons = [
        "the same request again",
        *(["nearly a row of test"] if test else []),
        *(["broken"] if skip_broken else []),
    ]
    reasons += ["more than --sizes asks for"] if sizes else []
    _say(folder, rows, f"; {left} left out: {' or '.join(reasons)}" if left else "")


def _say(folder: Path, rows: dict[str, int], more: str = "") -> None:
    print(f"{folder}: " + ", ".join(f"{count} {split}" for split, count in rows.items()) + more)
    print(f"next:  {typed_command()} run RECIPE {shlex.quote(f'task={folder}')}")


def _write_tools(labelled: Path, path: Path) -> None:
    from supertiny.core.files import write_json
    from supertiny.core.tool_inference import tools_from

    if path.exists():
        raise UserError(f"{path} is there already", "move it away, or name another folder")
    tools = tools_from(labelled)
    write_json(path, [tool.to_openai() for tool in tools])
    print(f"{path}: {len(tools)} functions; add descriptions to them, since the teacher reads these")
