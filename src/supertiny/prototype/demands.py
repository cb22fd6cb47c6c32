"""What a recipe asks of its models and its task, compared with what they have, before anything is spent.

A method says what it needs by the words of its `needs`, an engine what it can do by those of its `serves`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, gathered
from supertiny.core.files import read_json
from supertiny.core.methods import Own, build
from supertiny.core.models import absent_models, catalogue, status, store
from supertiny.core.records import Example, Tool, said
from supertiny.core.task import GUIDELINES, Task
from supertiny.core.task_rows import SPLITS
from supertiny.engines._gguf_file import read_header
from supertiny.prototype.prompting import function_list
from supertiny.prototype.settings import Settings
from supertiny.prototype.steps._order import misplaced

_OF_ENGINES: Mapping[str, tuple[str, str]] = {
    "token_scores": (
        "log-probabilities of given texts",
        "openvino, torch and llama_cpp give them, and the engine openai where the server is vLLM: dialect: vllm",
    ),
    "best_tokens": (
        "the most probable tokens at each place",
        "torch and llama_cpp give them, and the engine openai where the server is vLLM: dialect: vllm",
    ),
    "logprobs": ("log-probabilities of written tokens", "set logprobs: true on the engine, where its model gives them"),
}
_OF_FILES = ("openvino", "llama_cpp", "torch")  # engines whose model is a file of the catalogue or of the user's
_BYTES_PER_TOKEN = 3.9  # of prompts made of English words, function names and JSON
_TURN_TOKENS, _RULES_TOKENS = 5, 100
_ALWAYS_READ = 1024  # tokens that every model reads, so that most recipes need no look at the model's file
_SHOWN = 5  # rows that are told one by one


@dataclass(frozen=True)
class _Engine:
    """An engine of a recipe, and where it is named."""

    place: str
    name: str
    settings: Any
    bare: bool = False
    """Whether the recipe says its name alone: its model may be chosen where it is opened."""


def mistakes(settings: Settings, task: Task, own: Own | None = None, asks: bool = True) -> list[UserError]:
    """Engines that cannot open, steps and curators that ask for what is not there, rows that no model can read.

    `own` are steps that the task brings along. `asks` is False where all calls are made already, so that neither key
    nor price is needed.
    """
    teacher = _engine("prototype.engine", settings.engine)
    engines = {teacher.place: teacher}
    found: list[UserError] = []
    steps: list[Any] = []
    lists: dict[str, list[Any]] = {}
    for place, method, working in _methods(settings, "prototype", (teacher,), own):
        found += [*_unserved(place, method, working, task), *_unread(place, method)]
        engines |= {engine.place: engine for engine in working}
        steps += [method] if place.startswith("prototype.steps.") else []
        lists.setdefault(place.rpartition(".")[0], []).append(method)
        if getattr(method, "embedder", None) is not None:
            engines[f"{place}.embedder"] = _Engine(f"{place}.embedder", "embedder", method.embedder)
    found += [error for place, row in lists.items() if place.endswith(".steps") for error in misplaced(row, place)]
    unopened = [error for engine in engines.values() for error in _unopened(engine, asks)]
    return [*unopened, *found, *_too_long(steps, task, teacher.settings)]


def missing_models(blocks: Mapping[str, Any], own: Own | None = None) -> list[UserError]:
    """Models that the steps at these places, or those within them, name and that are not on this machine."""
    engines: dict[str, _Engine] = {}
    unread: list[UserError] = []
    for place, block in blocks.items():
        method = build("steps", block, place, own)
        within = list(_methods(method, place, (), own))
        working = [engine for _, _, engines_of_one in within for engine in engines_of_one]
        engines |= {engine.place: engine for engine in (*_brought(method, place), *working)}
        unread += [error for spot, one, _ in ((place, method, ()), *within) for error in _unread(spot, one)]
    return [*unread, *(error for engine in engines.values() for error in _unopened(engine, asks=False))]


def unserving(place: str, block: Any, need: str, asks: bool) -> list[UserError]:
    """What keeps the engine of a block from opening, or from giving what is needed, by a word of `serves`."""
    engine = _engine(place, block)
    if need in engine.settings.serves:
        return _unopened(engine, asks)
    what, hint = _OF_ENGINES[need]
    return [UserError(f"{place}: needs {what} ({need}), which {engine.name} does not give", hint)]


def _methods(
    settings: Any, place: str, engines: tuple[_Engine, ...], own: Own | None
) -> Iterator[tuple[str, Any, tuple[_Engine, ...]]]:
    """(place, method, engines that it works with) of all steps and curators, those within others too.

    One with an engine of its own works with that; the steps within it run with both.
    """
    for field in fields(settings):
        family, value = field.metadata.get("family"), getattr(settings, field.name)
        if family not in ("steps", "curators") or value is None:
            continue
        for number, block in enumerate(value):
            spot = f"{place}.{field.name}.{number}"
            method = build(family, block, spot, own)
            brought = _brought(method, spot)
            yield spot, method, brought or engines
            yield from _methods(method, spot, (*brought, *engines), own)


def _brought(method: Any, place: str) -> tuple[_Engine, ...]:
    """Engines of a method's own."""
    given = {f.name: getattr(method, f.name) for f in fields(method) if f.metadata.get("family") == "engines"}
    return tuple(_engine(f"{place}.{name}", engine) for name, engine in given.items() if engine)


def _unserved(place: str, method: Any, engines: Sequence[_Engine], task: Task) -> list[UserError]:
    """Words of `needs` that neither the engines nor the task have, and a judge that is told nothing."""
    name = type(method).__module__.rpartition(".")[2]
    found = []
    for need in getattr(method, "needs", ()):
        for engine in engines if need in _OF_ENGINES else ():
            if need not in engine.settings.serves:
                what, hint = _OF_ENGINES[need]
                problem = f"{place}: {name} needs {what} ({need}), which {engine.name} does not give"
                found.append(UserError(problem, hint))
        if need == "execute" and task.execute is None:
            problem = f"{place}: {name} needs execute(request_text, call), which the task does not have"
            found.append(UserError(problem, f"write it into {task.folder / 'hooks.py'}, or leave the step out"))
    told = getattr(method, "guidelines", None)
    if isinstance(told, str) and not told.strip() and not (task.folder / GUIDELINES).is_file():
        hint = f"write them into {task.folder / GUIDELINES}, or into `guidelines`"
        found.append(UserError(f"{place}: {name} has no guidelines to judge by", hint))
    return found


def _unread(place: str, method: Any) -> list[UserError]:
    """The small model that a method reads requests with, where it is nowhere."""
    reader = getattr(method, "reader", "")
    return absent_models({f"{place}.reader": reader}) if reader else []


def _unopened(engine: _Engine, asks: bool) -> list[UserError]:
    """What keeps an engine from opening: a model that is nowhere; a server's address, key or price where it `asks`.

    Nothing is sent.
    """
    if engine.name in _OF_FILES:
        unnamed = engine.bare and not engine.settings.model
        return [] if unnamed else absent_models({f"{engine.place}.model": engine.settings.model})
    if not asks or not hasattr(engine.settings, "base_url"):
        return []
    errors: list[UserError] = []
    with gathered(errors):
        engine.settings.open().close()
    return [UserError(f"{engine.place}: {error.problem}", error.hint) for error in errors]


def _too_long(steps: Sequence[Any], task: Task, engine: Any) -> list[UserError]:
    """Prompts, functions included, that are longer than what the model reads; by an estimate of their tokens."""
    written = _largest(steps, "max_tokens")
    listed = _function_tokens(task.tools) + _tokens(task.description) + _RULES_TOKENS
    placed = [(split, row) for split in SPLITS for row in getattr(task, split)]
    needed = [
        _row_tokens(row) + written + (_function_tokens(row.request.tools) if row.request.tools else listed)
        for _, row in placed
    ]
    answered = [_row_tokens(row) + _answer_tokens(row) for row in task.labelled]
    shown = round(sum(answered) / max(1, len(answered)) * min(len(answered), _largest(steps, "examples")))
    if max(needed, default=0) + shown <= _ALWAYS_READ:
        return []
    reads = context_tokens(engine)
    if reads is None:
        return []
    hint = f"the model reads {reads} tokens; take one with a longer context, or say less"
    usual = round(sum(needed) / len(needed)) + shown
    if usual > reads:
        problem = f"prototype: a usual prompt takes about {usual} tokens with its functions and {shown} of examples"
        return [UserError(problem, hint)]
    long = [(split, row, tokens) for (split, row), tokens in zip(placed, needed, strict=True) if tokens > reads]
    found = [
        UserError(f"{split}: the row {row.request.id!r} takes about {tokens} tokens with its functions", hint)
        for split, row, tokens in long[:_SHOWN]
    ]
    if len(long) > _SHOWN:
        found.append(UserError(f"and {len(long) - _SHOWN} more rows are longer than what the model reads"))
    return found


def _largest(steps: Sequence[Any], setting: str) -> int:
    counts = (getattr(step, setting, 0) for step in steps)
    return max((count for count in counts if isinstance(count, int)), default=0)


def context_tokens(engine: Any) -> int | None:
    """Tokens that an engine's model reads, by its settings or its file; None where that is not known here.

    Nothing is fetched: of a model that is not on this machine yet, nothing is known.
    """
    stated = getattr(engine, "context_tokens", None)
    known = [stated] if stated else []
    file = _model_file(str(getattr(engine, "model", "")))
    if file is not None and file.is_file():
        header = read_header(file)
        known.append(header.metadata.get(f"{header.architecture}.context_length"))
    elif file is not None and (file / "config.json").is_file():
        known.append(read_json(file / "config.json").get("max_position_embeddings"))
    return min((int(count) for count in known if count), default=None)


def _model_file(model: str) -> Path | None:
    """A model's file or folder, where it is on this machine."""
    if model in catalogue():
        return store() / f"{model}.gguf" if status(model) in ("verified", "unverified") else None
    return Path(model) if model and Path(model).exists() else None


def _engine(place: str, block: Any) -> _Engine:
    name = str(block["method"]) if isinstance(block, Mapping) else str(block)
    return _Engine(place, name, build("engines", block, place), not isinstance(block, Mapping))


def _tokens(text: str) -> int:
    return round(len(text.encode(errors="backslashreplace")) / _BYTES_PER_TOKEN)


def _row_tokens(row: Example) -> int:
    return sum(_tokens(said(message)) + _TURN_TOKENS for message in row.request.messages)


def _answer_tokens(row: Example) -> int:
    calls = row.answer.calls if row.answer else ()
    return _tokens(json.dumps([call.to_json() for call in calls], ensure_ascii=False)) + _TURN_TOKENS


def _function_tokens(tools: Sequence[Tool]) -> int:
    return _tokens(function_list(tools))
