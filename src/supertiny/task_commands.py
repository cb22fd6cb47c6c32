"""The commands that make task folders and hand examples on: `new` and `export`. They need core alone."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from supertiny.core.errors import UserError, nearest_word

_SOURCES = ("--example", "--from-logs", "--from-csv", "--from-dataset", "--tools-from")

Option = typer.Option
ChatLogs = Annotated[Path | None, Option(metavar="FILE", help="Chat logs in OpenAI's format, a conversation a line.")]
TableFile = Annotated[Path | None, Option(metavar="FILE", help="A table: CSV, TSV, JSON or JSONL.")]
DataSet = Annotated[
    str | None, Option(metavar="DATA", help="A data set: OWNER/NAME on the Hugging Face hub, or a folder.")
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
    split: Annotated[str, Option(help="The data set's rows that are taken: train, or train[:5000].")] = "train",
    test_split: TestSplit = "",
    config: Annotated[str, Option(metavar="NAME", help="The data set's subset.")] = "",
    sizes: Annotated[str, Option(metavar="SPLIT=ROWS,...", help="Rows of the task's splits.")] = "",
    seed: Annotated[int, Option(help="Decides which row goes to which split.")] = 0,
    skip_broken: Annotated[bool, Option("--skip-broken", help="Leave out rows that are broken.")] = False,
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
    from supertiny.core.tables import read_dataset, read_table
    from supertiny.core.task_import import Columns, copy_example, new_task

    if example is not None:
        copy_example(example, folder)
    else:
        asked_for = _sizes(sizes)
        file = from_logs or from_csv
        if file is not None and test_split:
            raise UserError("--test-split is for a data set", "give --from-dataset the folder that holds both splits")
        names = [name for name in (split, test_split) if name]
        tables = [read_table(file)] if file else [read_dataset(str(from_dataset), name, config) for name in names]
        columns = Columns(text, label, tuple(argument or ()), calls)
        rows = new_task(tables[0], folder, columns, seed, asked_for, skip_broken, *tables[1:])
        left = sum(len(table.rows) for table in tables) - sum(rows.values())
        more = f"; {left} left out: said twice, broken, or more than was asked for" if left else ""
        print(f"{folder}: " + ", ".join(f"{count} {split}" for split, count in rows.items()) + more)
    print(f"next:  {typed_command()} run {shlex.quote(str(folder / 'recipe.yaml'))}")


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN|TASK", help="A run folder, or a task's.")],
    to: Annotated[Path, Option("--to", metavar="FILE", help="The file to write, a JSON object a line.")],
    style: Annotated[str, Option("--as", metavar="SHAPE", help="messages, axolotl or sharegpt.")] = "messages",
    split: Annotated[
        str | None, Option(metavar="SPLIT", help="train of a run (default), labelled of a task (default), valid.")
    ] = None,
) -> None:
    """Write examples as other trainers read them.

    messages: TRL, Unsloth (apply_chat_template with tools).

    axolotl: Axolotl (type: chat_template).

    sharegpt: LLaMA-Factory (formatting: sharegpt, with columns for system and tools).

    Example: supertiny export runs/smart_home --to train.jsonl --as sharegpt
    """
    from supertiny.core.export import READERS
    from supertiny.core.export import export as write

    done = write(source, to, style, split)
    print(f"{to}: {done.rows} rows of {done.split}, as {style}")
    if done.left_out:
        print(f"left out: {done.left_out} rows in which user and assistant do not take turns")
    if done.shortened:
        print(f"shortened: {done.shortened} rows, which lost words beside calls; this shape has no room for them")
    print("read by:  " + READERS[style].replace("FILE", json.dumps(str(to), ensure_ascii=False)))


def typed_command() -> str:
    """The command as it can be typed here: by its path where the shell would not find it by its name."""
    called, found = Path(sys.argv[0]), shutil.which("supertiny")
    if called.name != "supertiny" or (found and Path(found).resolve() == called.resolve()):
        return "supertiny"
    return shlex.quote(str(called))


def _sizes(text: str) -> dict[str, int]:
    """Sizes as they are typed: `labelled=200,valid=100`. Raises UserError."""
    from supertiny.core.task_rows import SPLITS

    sizes: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        split, _, count = (word.strip() for word in part.partition("="))
        if split not in SPLITS:
            raise UserError(f"--sizes: there is no split {split!r}", nearest_word(split, SPLITS))
        if not count.isdecimal() or int(count) < 1:
            raise UserError(f"--sizes: {part!r} is not of the form SPLIT=ROWS", "for instance labelled=200,valid=100")
        sizes[split] = int(count)
    return sizes


def _write_tools(labelled: Path, path: Path) -> None:
    from supertiny.core.files import write_json
    from supertiny.core.task_tools import tools_from

    if path.exists():
        raise UserError(f"{path} is there already", "move it away, or name another folder")
    tools = tools_from(labelled)
    write_json(path, [tool.to_openai() for tool in tools])
    print(f"{path}: {len(tools)} functions; add descriptions to them, since the teacher reads these")
