"""The public sets that benchmarks read: where they lie, how they are split, and as tasks of ours.

SNIPS (voice commands, 7 functions), BANKING77 (questions, 77 labels) and BFCL (requests that bring their own tools).
Test rows of SNIPS and BANKING77 are never read: both are measured on `valid` or on rows of `train` kept apart.
"""

from __future__ import annotations

import os
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, read_rows
from supertiny.core.leaks import find_leaks
from supertiny.core.records import Answer, Call, Example, Request, Tool
from supertiny.core.task import Task

VARIABLE = "SUPERTINY_DATA"
BESIDE = Path(__file__).parents[1] / ".." / "shared" / "data"
SOURCES = {
    "snips": "github.com/sonos/nlu-benchmark, folder 2017-06-custom-intent-engines (CC0-1.0)",
    "banking77": "github.com/PolyAI-LDN/task-specific-datasets, folder banking_data (CC BY 4.0)",
    "xlam1k": "the xLAM function-calling sample that comes with STAR, arXiv:2602.03022 (CC BY 4.0)",
    "bfcl": "the Python package bfcl-eval, folder bfcl_eval/data (Apache-2.0)",
}
CATEGORIES = ("simple", "multiple", "parallel", "parallel_multiple", "irrelevance")
_BFCL_FILES = {"simple": "simple_python"}

# Of the leaderboard and of xlam1k, whose types are Python's, such as `List[int]` and `str, optional`.
_TYPES = {
    "str": "string", "any": "string", "callable": "string", "int": "integer", "float": "number", "bool": "boolean",
    "list": "array", "set": "array", "tuple": "array", "dict": "object",
}  # fmt: skip
_OPTIONAL = re.compile(r", *(optional|default)")


def folder_of(name: str, given: Path | None) -> Path:
    """The folder of a set: under `given`, $SUPERTINY_DATA, or ../shared/data beside the repository."""
    root = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else BESIDE)
    folder = root / name
    if not folder.is_dir():
        raise UserError(
            f"the set {name!r} is not at {folder}",
            f"get it from {SOURCES[name]}, one JSON object a line, and name the folder above by --data or ${VARIABLE}",
        )
    return folder


def balanced(rows: Sequence[Mapping[str, Any]], name: str, count: int, seed: int) -> list[int]:
    """Places of `count` rows, drawn by seed, that hold each value of the field `name` equally often."""
    generator = random.Random(seed)
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        groups[str(row[name])].append(place)
    for key in sorted(groups):
        generator.shuffle(groups[key])
    drawn: list[int] = []
    turn = 0
    while len(drawn) < min(count, len(rows)):
        drawn += [groups[key][turn] for key in sorted(groups) if turn < len(groups[key])]
        turn += 1
    return drawn[:count]


def snips_task(folder: Path, labelled: int, seed: int, pool: int = 0) -> Task:
    """SNIPS as a task: `labelled` rows of train, of each function equally many, `valid` whole, and a pool.

    The pool are `pool` further rows of train as they come, in an order by seed, their gold apart. No row of train that
    says the same as a row of valid is taken. Signatures name all arguments of a function; nothing else of train is
    looked at.
    """
    train = [{**row, "tool": row["calls"][0]["name"]} for row in read_rows(folder / "train.jsonl")]
    valid = [_example(row, f"valid-{place}") for place, row in enumerate(read_rows(folder / "valid.jsonl"))]
    unique = sorted({_plain(row["text"]): place for place, row in reversed(list(enumerate(train)))}.values())
    # Twice as many as are wanted are drawn, so that those which leak can be left out.
    order = [unique[n] for n in balanced([train[place] for place in unique], "tool", 2 * labelled, seed)]
    rest = random.Random(seed).sample(range(len(train)), min(2 * pool, len(train)))
    near = {str(place): train[place]["text"] for place in [*order, *rest]}
    asked = {example.request.id: example.request.text for example in valid}
    leaks = {int(leak.left) for leak in find_leaks(near, asked)}  # each row is looked up, so that all are found
    shown = [place for place in order if place not in leaks][:labelled]
    said = {_plain(train[place]["text"]) for place in shown}
    drawn = [place for place in rest if place not in leaks and _plain(train[place]["text"]) not in said][:pool]
    known, further = ([_example(train[p], f"train-{p}") for p in places] for places in (shown, drawn))
    return Task(
        "snips",
        "Turn the user's voice command into a call of one of the functions. "
        "Every value is copied word for word from the command.",
        folder,
        signatures(train),
        labelled=tuple(known),
        unlabelled=tuple(Example(row.request) for row in further),
        valid=tuple(valid),
        test=(),
        pool_gold={row.request.id: row.answer.calls for row in further if row.answer is not None},
        hash=hash_of([seed, shown, drawn]),
    )


def signatures(rows: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Functions and the names of their arguments, as a task's author would write them; all values are text."""
    slots: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        for call in row["calls"]:
            slots[call["name"]].update(call["arguments"])
    return tuple(
        Tool(
            name,
            "",
            {
                "type": "object",
                "properties": {slot: {"type": "string"} for slot in sorted(slots[name])},
                "additionalProperties": False,
            },
        )
        for name in sorted(slots)
    )


def _example(row: Mapping[str, Any], name: str) -> Example:
    calls = tuple(Call.from_json(call) for call in row["calls"])
    return Example(Request.from_text(row["text"], name), Answer(calls), provenance={"source": "labelled"})


@dataclass(frozen=True)
class Labelled:
    """A text and its label."""

    text: str
    label: str


def banking_split(folder: Path, each: int, held_out: int, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """(`each` examples of every label, `held_out` other rows), both from train; no text stands in both, or nearly."""
    rows = read_rows(folder / "train.jsonl")
    labels = {row["label"] for row in rows}
    shown = balanced(rows, "label", each * len(labels), seed)
    rest = sorted(set(range(len(rows))) - set(shown))
    random.Random(seed).shuffle(rest)
    texts = [row["text"] for row in rows]
    leaks = find_leaks({str(place): texts[place] for place in rest}, {str(place): texts[place] for place in shown})
    leaking = {int(leak.left) for leak in leaks}
    held = [place for place in rest if place not in leaking][:held_out]
    known, asked = ([Labelled(texts[p], rows[p]["label"]) for p in places] for places in (shown, held))
    return known, asked


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Case:
    """A row of BFCL: a request with its tools, and the file's own descriptions and answers for the checker."""

    request: Request
    functions: tuple[Mapping[str, Any], ...]
    answers: tuple[Mapping[str, Any], ...]


def bfcl_cases(folder: Path, category: str, count: int, seed: int) -> list[Case]:
    """`count` rows of a category, drawn by seed; all where it is 0."""
    rows = read_rows(folder / f"{_BFCL_FILES.get(category, category)}.jsonl")
    if 0 < count < len(rows):
        rows = [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), count))]
    return [_case(row) for row in rows]


def xlam_rows(data: Path | None) -> list[Example]:
    """Labelled rows of xlam1k, each with functions of its own; none where the set is not there."""
    try:
        rows = read_rows(folder_of("xlam1k", data) / "train.jsonl")
    except UserError:
        return []
    return [
        Example(
            replace(Request.from_text(row["text"], f"xlam-{place}"), tools=tuple(_tool(tool) for tool in row["tools"])),
            Answer(tuple(Call.from_json(call) for call in row["calls"])),
        )
        for place, row in enumerate(rows)
    ]


def _tool(tool: Mapping[str, Any]) -> Tool:
    """Of xlam1k, arguments may stand in the parameters themselves, and whether one is optional in its type."""
    schema = tool["parameters"]
    if "properties" not in schema:
        needed = [name for name, argument in schema.items() if not _is_optional(argument)]
        schema = {"type": "object", "properties": schema, "required": needed}
    return Tool(tool["name"], tool.get("description", ""), json_schema(schema))


def _case(row: Mapping[str, Any]) -> Case:
    tools = tuple(_tool(tool) for tool in row["tools"])
    request = replace(Request.from_text(row["text"], row["id"]), tools=tools)
    if row.get("system"):
        words = [said if isinstance(said, str) else str(said.get("content", "")) for said in row["system"]]
        request = replace(request, messages=({"role": "system", "content": "\n".join(words)}, *request.messages))
    return Case(request, tuple(row["tools"]), tuple(row["possible_answers"]))


def _is_optional(argument: Mapping[str, Any]) -> bool:
    return "default" in argument or bool(_OPTIONAL.search(str(argument.get("type", ""))))


def json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The leaderboard's parameters as JSON Schema: types by their JSON names, all the way down."""
    plain: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            word = re.split(r"\W", value, maxsplit=1)[0].lower()
            plain[key] = _TYPES.get(word, word)
        elif key == "properties" and isinstance(value, Mapping):
            plain[key] = {name: json_schema(inner) for name, inner in value.items()}
        elif key == "items" and isinstance(value, Mapping):
            plain[key] = json_schema(value)
        elif key in ("description", "enum", "required"):
            plain[key] = value
    return plain
