"""Examples as other trainers read them: one JSON object a line, in one of three shapes.

`messages`, for TRL and Unsloth: `{"messages": [..., {"role": "assistant", "content": "", "tool_calls": [{"id", "type":
"function", "function": {"name", "arguments": {...}}}]}], "tools": JSON text}`. Arguments are objects, as chat templates
want them; those that a row lacks come out of `load_dataset` as nulls, which TRL takes out again. Where Arrow would
change values or refuse them (an argument of two types, a null of its own, a date), all of the file's arguments are JSON
text, which newer chat templates write as it is.

`axolotl`: the same messages with arguments as JSON text, and `tools` as a list whose parameters are JSON text: Axolotl
reads both back.

`sharegpt`, for LLaMA-Factory: `{"conversations": [{"from": "human" | "gpt" | "function_call" | "observation", "value":
text}], "system": text, "tools": JSON text}`. It skips rows in which who asks and who answers do not take turns, so what
one side says twice in a row is one turn, and what the assistant says before anybody asks is put into `system`. A turn
of calls has no room for words: they are left out, and counted, as are rows that cannot take turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, nearest_word
from supertiny.core.files import read_rows, write_rows
from supertiny.core.leaks import SYSTEM_ROLES
from supertiny.core.recipe import read_recipe
from supertiny.core.records import Answer, Call, Example, Message, Tool, said
from supertiny.core.task import Task, load_task

READERS: Mapping[str, str] = {
    "messages": 'TRL: SFTTrainer(train_dataset=load_dataset("json", data_files=FILE, split="train")); '
    'Unsloth: apply_chat_template(row["messages"], tools=json.loads(row["tools"])) of each line',
    "axolotl": "Axolotl: {type: chat_template, path: FILE, ds_type: json, field_tools: tools}",
    "sharegpt": 'LLaMA-Factory: "formatting": "sharegpt", '
    '"columns": {"messages": "conversations", "system": "system", "tools": "tools"}',
}
_SIGNS = ("recipe.yaml", "tools.json", "labelled.jsonl", "task.yaml")  # files that a run or a task has
_SPLITS = ("train", "labelled", "valid")
_ASKING = {"user": "human", "tool": "observation"}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")  # Arrow's reader makes points in time of texts that are dates
Row = dict[str, Any]
Turn = tuple[Message, Sequence[Call]]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    split: str
    rows: int
    left_out: int = 0
    """Rows whose turns the shape cannot hold."""
    shortened: int = 0
    """Rows that lost words which stood beside calls."""


def export(source: Path, target: Path, style: str = "messages", split: str | None = None) -> Exported:
    """Writes the rows that a run's student learns from, or a task's labelled ones.

    `split` may say `valid` instead. Rows without an answer are left out. Raises UserError for a source that is neither
    run nor task, an unknown style or split, a target that is there, and one in no folder (a relative one is made).
    """
    if style not in READERS:
        raise UserError(f"--as: there is no shape {style!r}", nearest_word(style, READERS))
    if split is not None and split not in _SPLITS:
        raise UserError(f"--split: {split!r} cannot be exported", nearest_word(split, _SPLITS))
    if target.exists():
        raise UserError(f"{target} is there already", "move it away, or name another file")
    near = target.parent if target.is_absolute() else target.parent.parent
    if not near.is_dir():
        raise UserError(f"cannot write {target}: there is no folder {near}", "make it, or name another file")
    task, examples, chosen = _examples(source, split)
    answered = [(row, row.answer) for row in examples if row.answer is not None and row.answer.readable]
    spoken = [_spoken(row, answer) for row, answer in answered]
    tools = [row.request.tools or task.tools for row, _ in answered]
    if style == "sharegpt":
        shaped = [_of_sharegpt(*given) for given in zip(spoken, tools, strict=True)]
        whole = [(row, is_shorter) for row, is_shorter in shaped if row is not None]
        write_rows(target, (row for row, _ in whole))
        return Exported(chosen, len(whole), len(shaped) - len(whole), sum(is_shorter for _, is_shorter in whole))
    of_tools = _with_text if style == "axolotl" else _as_text
    as_text = style == "axolotl" or not _is_safe_in_arrow(c.arguments for turns in spoken for t in turns for c in t[1])
    made = zip(spoken, tools, strict=True)
    write_rows(target, ({"messages": _messages(turns, as_text), "tools": of_tools(own)} for turns, own in made))
    return Exported(chosen, len(answered))


def _examples(source: Path, split: str | None) -> tuple[Task, Sequence[Example], str]:
    if not source.is_dir():
        raise UserError(f"there is no folder {source}", "give a run, such as runs/smart_home, or a task's folder")
    if not any((source / name).is_file() for name in _SIGNS):
        raise UserError(f"{source} is neither a run nor a task", "a run holds recipe.yaml, a task tools.json")
    if (source / "tools.json").is_file() or not (source / "recipe.yaml").is_file():
        if split == "train":
            raise UserError(f"{source} is a task, which has no 'train'", "labelled and valid have answers")
        task, chosen = load_task(source), split or "labelled"
        return task, getattr(task, chosen), chosen
    task = load_task(read_recipe(source / "recipe.yaml").task)
    if split not in (None, "train"):
        return task, getattr(task, split), split
    learned = source / "prototype" / "train.jsonl"
    if not learned.is_file():
        hint = f"finish it with `supertiny run {source / 'recipe.yaml'} --only prototype`"
        raise UserError(f"{source}: its stage prototype is not done", hint)
    return task, [Example.from_json(row) for row in read_rows(learned)], "train"


def _spoken(row: Example, answer: Answer) -> list[Turn]:
    """The request's messages and the answer, each with its calls."""
    said_before: list[Turn] = [
        (message, [Call.from_json(call) for call in message.get("tool_calls") or ()])
        for message in row.request.messages
    ]
    return [*said_before, ({"role": "assistant", "content": answer.text}, answer.calls)]


def _messages(turns: Sequence[Turn], as_text: bool) -> list[Row]:
    """Calls in OpenAI's form; an id has nine letters and digits, which is what the strictest chat templates ask for."""
    messages: list[Row] = []
    for message, calls in turns:
        written: Row = {**message, "content": said(message)}
        if calls:
            given = message.get("tool_calls") or [{}] * len(calls)
            written["tool_calls"] = [
                {"id": own.get("id") or f"call{number:05}", "type": "function", "function": _function(call, as_text)}
                for number, (call, own) in enumerate(zip(calls, given, strict=True))
            ]
        messages.append(written)
    return messages


def _function(call: Call, as_text: bool) -> Row:
    written = call.to_json()
    return written | {"arguments": _json(written["arguments"])} if as_text else written


def _as_text(tools: Sequence[Tool]) -> str:
    return _json([tool.to_openai() for tool in tools])


def _with_text(tools: Sequence[Tool]) -> list[Row]:
    listed = [tool.to_openai()["function"] for tool in tools]
    texts = [body | {"parameters": _json(body["parameters"])} for body in listed]
    return [{"type": "function", "function": body} for body in texts]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_safe_in_arrow(values: Iterable[Any]) -> bool:
    """Whether a column of these objects comes out as it went in, but for nulls where a key is not there."""
    kinds: dict[tuple[str, ...], str] = {}
    return all(_fits(value, (), kinds) for value in values)


def _fits(value: Any, path: tuple[str, ...], kinds: dict[tuple[str, ...], str]) -> bool:
    """Whether a value has the type that was seen at its path before; whole numbers and fractions are two."""
    if value is None or (isinstance(value, str) and _DATE.match(value)):
        return False
    kind = "object" if isinstance(value, Mapping) else type(value).__name__
    if kinds.setdefault(path, kind) != kind:
        return False
    if isinstance(value, Mapping):
        return all(_fits(inner, (*path, key), kinds) for key, inner in value.items())
    return not isinstance(value, list) or all(_fits(inner, (*path, "[]"), kinds) for inner in value)


def _of_sharegpt(turns: Sequence[Turn], tools: Sequence[Tool]) -> tuple[Row | None, bool]:
    """The row, or None where it cannot take turns, and whether words are lost."""
    rest = [turn for turn in turns if turn[0].get("role") not in SYSTEM_ROLES]
    first = next(place for place, (message, _) in enumerate(rest) if message.get("role") == "user")
    if any(calls or message.get("role") == "tool" for message, calls in rest[:first]):
        return None, False
    system = [said(message) for message, _ in turns if message.get("role") in SYSTEM_ROLES]
    system += [said(message) for message, _ in rest[:first]]
    written: list[Row] = []
    is_shorter = False
    for is_answer, group in groupby(rest[first:], key=lambda turn: turn[0].get("role") == "assistant"):
        side = list(group)
        words = "\n".join(filter(None, (said(message) for message, _ in side)))
        calls = [call.to_json() for _, made in side for call in made]
        if calls and len(side) > 1 and side[-1] is turns[-1]:
            return None, False  # what was said before it cannot be told from the answer
        if calls:  # one as an object, several as a list
            is_shorter = is_shorter or bool(words)
            written.append({"from": "function_call", "value": _json(calls[0] if len(calls) == 1 else calls)})
        else:
            speaker = "gpt" if is_answer else _ASKING[str(side[0][0].get("role"))]
            written.append({"from": speaker, "value": words})
    functions = _json([tool.to_openai()["function"] for tool in tools])
    return {"conversations": written, "system": "\n".join(filter(None, system)), "tools": functions}, is_shorter
