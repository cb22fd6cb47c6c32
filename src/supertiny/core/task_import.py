"""Task folders from what people have: an example of ours, or chat logs; tables stand in task_tables.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supertiny.core.chat_logs import read_log, read_tools
from supertiny.core.errors import UserError, UserErrors, nearest_word
from supertiny.core.files import read_rows, write_text
from supertiny.core.records import Call, Tool
from supertiny.core.task_rows import SPLITS
from supertiny.core.task_splits import check_free, shared_out, write_task
from supertiny.core.tool_inference import inferred_tools

EXAMPLES = Path(__file__).parents[3] / "examples"


def copy_example(name: str, folder: Path) -> list[Path]:
    """Copies an example out, to be changed; name and task in its recipes become the copy's own.

    Raises UserError for an unknown name or a folder that is not empty.
    """
    known = {path.parent.name for path in EXAMPLES.glob("*/task.yaml")}
    if not known:
        raise UserError("the examples are not installed beside the package", "run from a checkout of the project")
    if name not in known:
        raise UserError(f"there is no example {name!r}", nearest_word(name, known))
    check_free(folder)
    copied = []
    for path in sorted((EXAMPLES / name).iterdir()):
        if path.is_file() and not path.name.startswith("."):
            folder.mkdir(parents=True, exist_ok=True)
            copied.append(Path(shutil.copy2(path, folder / path.name)))
    for path in copied:
        if path.suffix == ".yaml" and path.stem.startswith(("recipe", "task")):
            _rename(path, name, folder)
    return copied


def _rename(path: Path, example: str, folder: Path) -> None:
    """Puts a copy's own name and folder into the lines `name:` and `task:`; all other lines and comments stay."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines):
        if line.startswith("name: "):
            own = line.removeprefix("name: ").replace(example, folder.resolve().name)
            lines[number] = f"name: {json.dumps(own, ensure_ascii=False)}"
        elif line.startswith("task: "):
            lines[number] = f"task: {json.dumps(str(folder), ensure_ascii=False)}"
    write_text(path, "\n".join(lines))


def new_from_logs(logs: Path, folder: Path, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """A task folder from chat logs, one JSON object a line; gives the rows per split.

    A log is a conversation as `chat_logs.read_log` reads it. The same request is taken once, with its first answer, and
    near-duplicates stay on one side of the splits. Tools are those that the logs carry, and are inferred from the calls
    where they carry none. Raises UserErrors with the place of every row that cannot be read.
    """
    return new_from_chats(read_rows(logs), str(logs), folder, seed, sizes)


def new_from_chats(
    chats: Sequence[Mapping[str, Any]],
    source: str,
    folder: Path,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """As `new_from_logs`, from logs that are read already; `source` is what mistakes are told to stand in."""
    check_free(folder)
    errors: list[UserError] = []
    rows: list[dict[str, Any]] = []
    tools: dict[str, Tool] = {}
    for number, log in enumerate(chats, 1):
        try:
            row = read_log(log)
            for tool in read_tools(log.get("tools")):
                tools.setdefault(tool.name, tool)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            errors.append(UserError(f"{source}: row {number}: {told(error)}"))
            continue
        rows.append(row)
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    splits = shared_out(rows, seed, source, sizes)
    calls = {split: [Call.from_json(c) for row in splits[split] for c in row["calls"]] for split in SPLITS}
    inferred = {tool.name: tool for tool in inferred_tools(calls)}
    return write_task(folder, splits, list((inferred | tools).values()))


def told(error: Exception) -> str:
    """An error of reading, in words: a missing key says nothing by itself."""
    return f"has no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
