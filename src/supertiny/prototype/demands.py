"""What a recipe asks of its models and its task, compared with what they have, before anything is spent.

A method says what it needs by the words of its `needs`, an engine what it can do by those of its `serves`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.files import read_json
from supertiny.core.methods import Own, build
from supertiny.core.models import catalogue, status, store
from supertiny.core.records import Example, Tool, said
from supertiny.core.task import Task
from supertiny.engines._gguf_file import read_header
from supertiny.prototype.prompting import function_list
from supertiny.prototype.settings import Settings

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
_BYTES_PER_TOKEN = 3.9  # of prompts made of English words, function names and JSON
_TURN_TOKENS, _RULES_TOKENS = 5, 100
_ALWAYS_READ = 1024  # tokens that every model reads, so that most recipes need no look at the model's file
_SHOWN = 5  # rows that are told one by one
_SPLITS = ("labelled", "unlabelled", "valid", "test")


@dataclass(frozen=True)
class _Asking:
    """A method of a recipe, and the engine that it works with."""

    place: str
    name: str
    method: Any
    engine: Any
    engine_name: str
    owns: bool = False
    """Whether the engine is the method's own."""


def mistakes(settings: Settings, task: Task, own: Own | None = None, asks: bool = True) -> list[UserError]:
    """Every step and curator that asks for what is not there, rows that no model can read, engines that cannot open.

    `own` are steps that the task brings along. `asks` is False where all calls are made already, so that neither key
    nor price is needed.
    """
    name, engine = _built(settings.engine, "prototype.engine")
    found = _unopened("prototype.engine", engine) if asks else []
    for asking in _askings(settings, _Asking("prototype", "", settings, engine, name), own):
        found += _unserved(asking, task)
        if asks and asking.owns:
            found += _unopened(f"{asking.place}.engine", asking.engine)
    found = list({str(error): error for error in found}.values())  # steps of a cascade are asked for with both engines
    return found + _too_long(settings, task, engine, own)


def _askings(settings: Any, above: _Asking, own: Own | None, inside: str = "") -> Iterator[_Asking]:
    """All steps and curators, also those within others; one with an engine of its own works with that."""
    for field in fields(settings):
        family, value = field.metadata.get("family"), getattr(settings, field.name)
        if family not in ("steps", "curators") or value is None:
            continue
        blocks = value if isinstance(value, list | tuple) else [value]
        for number, block in enumerate(blocks):
            place = f"{inside or above.place}.{field.name}" + (f".{number}" if blocks is value else "")
            method = build(family, block, place, own)
            asking = _Asking(place, _name(block), method, above.engine, above.engine_name)
            named = next((f.name for f in fields(method) if f.metadata.get("family") == "engines"), "engine")
            own_engine = getattr(method, named, None)
            if isinstance(own_engine, str | Mapping) and own_engine:
                name, engine = _built(own_engine, f"{place}.{named}")
                asking = _Asking(place, asking.name, method, engine, name, owns=True)
            yield asking
            yield from _askings(method, asking, own)
            if asking.owns:  # the steps within run with the engine above, too
                yield from _askings(method, above, own, place)


def _unserved(asking: _Asking, task: Task) -> list[UserError]:
    """Words of `needs` that neither the engine nor the task has, and a judge that is told nothing."""
    found = []
    serves = getattr(asking.engine, "serves", None)
    for need in getattr(asking.method, "needs", ()):
        if need in _OF_ENGINES and serves is not None and need not in serves:
            what, hint = _OF_ENGINES[need]
            problem = f"{asking.place}: {asking.name} needs {what} ({need}), which {asking.engine_name} does not give"
            found.append(UserError(problem, hint))
        if need == "execute" and task.execute is None:
            problem = f"{asking.place}: {asking.name} needs execute(request_text, call), which the task does not have"
            found.append(UserError(problem, f"write it into {task.folder / 'hooks.py'}, or leave the step out"))
    told = getattr(asking.method, "guidelines", None)
    if isinstance(told, str) and not told.strip() and not (task.folder / "guidelines.md").is_file():
        problem = f"{asking.place}: {asking.name} has no guidelines to judge by"
        found.append(UserError(problem, f"write them into {task.folder / 'guidelines.md'}, or into `guidelines`"))
    return found


def _unopened(place: str, engine: Any) -> list[UserError]:
    """What keeps a client of a server from opening: its address, key or price. Nothing is sent."""
    if not hasattr(engine, "base_url"):
        return []
    try:
        engine.open().close()
    except UserErrors as several:
        return [UserError(f"{place}: {error.problem}", error.hint) for error in several.errors]
    except UserError as error:
        return [UserError(f"{place}: {error.problem}", error.hint)]
    return []


def _too_long(settings: Settings, task: Task, engine: Any, own: Own | None) -> list[UserError]:
    """Rows whose prompt, functions included, is longer than what the model reads; by an estimate of their tokens."""
    steps = [build("steps", block, "prototype.steps", own) for block in settings.steps]
    written = _largest(steps, "max_tokens")
    listed = _function_tokens(task.tools) + _tokens(task.description) + _RULES_TOKENS
    placed = [(split, row) for split in _SPLITS for row in getattr(task, split)]
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
    hint = f"the model reads {reads} tokens; take a model with a longer context, or fewer or shorter functions"
    if listed + written > reads and any(not row.request.tools for _, row in placed):
        return [UserError(f"{task.folder / 'tools.json'}: its functions alone take about {listed} tokens", hint)]
    hint = f"the model reads {reads} tokens; shorten the row or take it out, or take a model with a longer context"
    long = [(split, row, tokens) for (split, row), tokens in zip(placed, needed, strict=True) if tokens > reads]
    found = [
        UserError(f"{split}: the row {row.request.id!r} takes about {tokens} tokens with its functions", hint)
        for split, row, tokens in long[:_SHOWN]
    ]
    if len(long) > _SHOWN:
        found.append(UserError(f"and {len(long) - _SHOWN} more rows are longer than what the model reads"))
    if not long and shown and sum(needed) / len(needed) + shown > reads:
        problem = f"prototype.steps: a prompt with its examples takes about {max(needed) + shown} tokens"
        found.append(UserError(problem, f"the model reads {reads} tokens; show fewer examples"))
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


def _built(block: Any, place: str) -> tuple[str, Any]:
    return _name(block), build("engines", block, place)


def _name(block: Any) -> str:
    return str(block["method"]) if isinstance(block, Mapping) else str(block)


def _tokens(text: str) -> int:
    return round(len(text.encode(errors="backslashreplace")) / _BYTES_PER_TOKEN)


def _row_tokens(row: Example) -> int:
    return sum(_tokens(said(message)) + _TURN_TOKENS for message in row.request.messages)


def _answer_tokens(row: Example) -> int:
    calls = row.answer.calls if row.answer else ()
    return _tokens(json.dumps([call.to_json() for call in calls], ensure_ascii=False)) + _TURN_TOKENS


def _function_tokens(tools: Sequence[Tool]) -> int:
    return _tokens(function_list(tools))
