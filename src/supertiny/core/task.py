"""A task: functions, four splits of examples and a verifier, in a folder of plain files.

A folder holds `tools.json` (OpenAI's tool format), `labelled.jsonl`, `unlabelled.jsonl`, `valid.jsonl` and `test.jsonl`
with rows of `{"text" | "messages", "calls": [{"name", "arguments"}]}`, and where wanted `task.yaml` (name, description,
splits, leak_similarity), `hooks.py` with `verify(request_text, calls) -> (outcome, reason)` or
`execute(request_text, call) -> result`, steps of the task's own in `steps/NAME.py`, and `guidelines.md` for a judge.
The Python files are code of the task's author: opening the task runs hooks.py, and using a step runs its file.
`"calls": []` says that no function serves; rows of `unlabelled.jsonl` may leave `calls` out, and where they have them,
nobody but a measurement sees them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from supertiny.core.errors import UserError, UserErrors, gathered, nearest_word
from supertiny.core.files import read_json
from supertiny.core.leaks import SIMILARITY, asked_text, find_leaks
from supertiny.core.methods import validated
from supertiny.core.records import Call, Example, Request, Tool, Verdict
from supertiny.core.task_rows import SPLITS, Row, read_split
from supertiny.core.verifying import Execute, Hook, check_schema, load_hooks, verified

DESCRIPTION = (
    "Turn the user's request into a call of one of the functions. Where no function serves the request, call none."
)
STEPS = "steps"  # folder of the steps that a task brings along
GUIDELINES = "guidelines.md"  # what a judge is told where its settings say nothing
_MEANINGFUL = {".yaml", ".yml", ".json", ".jsonl", ".py"}  # hooks.py may import any code beside it
SHOWN = 20  # mistakes of one kind that are listed before the rest is counted


@dataclass(frozen=True)
class TaskCard:
    """What task.yaml may say."""

    name: str = ""
    """The folder's name where it is empty."""
    description: str = DESCRIPTION
    """What the teacher is told."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """File name per split, where it is not SPLIT.jsonl."""
    leak_similarity: float = SIMILARITY
    """Jaccard similarity of character 5-grams from which two rows are near-duplicates; 1 looks for same rows alone."""


@dataclass(frozen=True, eq=False)
class Task:
    """What a recipe works on. Rows of `unlabelled` have no answer; gold that they came with is in `pool_gold`."""

    name: str
    description: str
    folder: Path
    tools: tuple[Tool, ...]
    labelled: tuple[Example, ...]
    unlabelled: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    pool_gold: Mapping[str, tuple[Call, ...]]
    hash: str
    """Of every file that means something: splits, tools, card, hooks, steps and the data files beside them."""
    hook: Hook | None = None
    execute: Execute | None = None
    """Carries a call out: `execute(request_text, {"name", "arguments"})` of hooks.py; what it gives is the result."""
    tool_map: Mapping[str, Tool] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tool_map", MappingProxyType({tool.name: tool for tool in self.tools}))

    def verify(self, request: Request, calls: Sequence[Call], gold: Sequence[Call] | None = None) -> Verdict:
        """Schema, then the task's hook; `similarity` to gold where it is given."""
        own = {tool.name: tool for tool in request.tools}
        return verified(request, calls, own or self.tool_map, self.hook, gold)


def load_task(folder: Path) -> Task:
    """Reads and checks a task's folder. Raises UserErrors with every mistake, each with its file and line."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no task folder {folder}", "make one with `supertiny new`")
    card = _read_card(folder)
    errors: list[UserError] = []
    tools = _read_tools(folder, errors)
    rows: dict[str, list[Row]] = {}
    taken: set[str] = set()
    for split in SPLITS:
        rows[split] = read_split(folder / card.splits.get(split, f"{split}.jsonl"), split, tools, errors, taken)
    errors += _leaks(rows, card.leak_similarity)
    hook = execute = None
    with gathered(errors):
        hook, execute = load_hooks(folder / "hooks.py")
    if errors:
        raise UserErrors(errors)
    pool = [row.example for row in rows["unlabelled"]]
    return Task(
        name=card.name or folder.resolve().name,
        description=card.description.strip(),
        folder=folder,
        tools=tuple(tools.values()),
        labelled=tuple(row.example for row in rows["labelled"]),
        unlabelled=tuple(Example(one.request, provenance=one.provenance) for one in pool),
        valid=tuple(row.example for row in rows["valid"]),
        test=tuple(row.example for row in rows["test"]),
        pool_gold=MappingProxyType({e.request.id: e.answer.calls for e in pool if e.answer is not None}),
        hash=_hash(folder),
        hook=hook,
        execute=execute,
    )


def _read_card(folder: Path) -> TaskCard:
    path = folder / "task.yaml"
    if not path.is_file():
        return TaskCard()
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(card, dict):
        raise UserError(f"{path} must be a mapping of name, description, splits, leak_similarity")
    read: TaskCard = validated(TaskCard, card, str(path))
    for split in read.splits:
        if split not in SPLITS:
            raise UserError(f"{path}: there is no split {split!r}", nearest_word(split, SPLITS))
    if not 0 < read.leak_similarity <= 1:
        raise UserError(f"{path}: leak_similarity must be above 0 and at most 1; found {read.leak_similarity}")
    return read


def _read_tools(folder: Path, errors: list[UserError]) -> dict[str, Tool]:
    path = folder / "tools.json"
    if not path.is_file():
        hint = f"make it with `supertiny new --tools-from {folder / 'labelled.jsonl'}`"
        errors.append(UserError(f"{path} is not there", hint))
        return {}
    tools: dict[str, Tool] = {}
    try:
        listed = read_json(path)
    except UserError as error:
        errors.append(error)
        return {}
    if isinstance(listed, dict) and isinstance(listed.get("tools"), list):
        listed = listed["tools"]
    if not isinstance(listed, list) or not listed:
        errors.append(UserError(f"{path} must be a list of tools in OpenAI's format"))
        return {}
    for number, entry in enumerate(listed, 1):
        problem = _tool_problem(entry, tools)
        if problem:
            errors.append(UserError(f"{path}: tool {number}: {problem}"))
        else:
            tool = Tool.from_openai(entry)
            tools[tool.name] = tool
    return tools


def _tool_problem(entry: Any, known: Mapping[str, Tool]) -> str:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return 'needs {"type": "function", "function": {"name", "description", "parameters"}}'
    if function["name"] in known:
        return f"{function['name']!r} is there twice"
    if not isinstance(function.get("parameters") or {}, dict):
        return f"parameters of {function['name']!r} must be a JSON Schema object"
    try:
        return check_schema(Tool.from_openai(entry))
    except ValueError as error:
        return str(error)


def _leaks(rows: Mapping[str, Sequence[Row]], similarity: float) -> list[UserError]:
    texts = {split: {r.place: asked_text(r.example.request.messages) for r in rows[split]} for split in SPLITS}
    learned = texts["labelled"] | texts["unlabelled"]
    leaks = find_leaks(texts["valid"], learned, similarity)
    leaks += find_leaks(texts["test"], learned | texts["valid"], similarity)
    hint = "take one of the two out; `leak_similarity` in task.yaml says what counts as nearly the same"
    errors = [UserError(f"leak: {leak}", hint if number == 0 else "") for number, leak in enumerate(leaks[:SHOWN])]
    if len(leaks) > SHOWN:
        errors.append(UserError(f"leak: and {len(leaks) - SHOWN} more rows"))
    return errors


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        data = path.suffix in _MEANINGFUL and not path.name.startswith(("recipe", "."))
        if path.is_file() and data:
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    # These came later: a task without them has the hash that it had.
    for path in (folder / GUIDELINES, *sorted((folder / STEPS).glob("*.py"))):
        if path.is_file():
            place = path.relative_to(folder).as_posix()
            digest.update(place.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]
