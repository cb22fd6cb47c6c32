"""Examples as other trainers read them: one JSON object a line, in one of two shapes.

`messages`: `{"messages": [..., {"role": "assistant", "content": "", "tool_calls": [{"id", "type": "function",
"function": {"name", "arguments": {...}}}]}], "tools": [...]}`. TRL's SFTTrainer takes it as it is; Axolotl with `type:
chat_template`; Unsloth by `tokenizer.apply_chat_template(row["messages"], tools=row["tools"])`. Arguments are objects,
as chat templates want them. Whoever loads the rows into Arrow gets a null where a row lacks what another one has.

`sharegpt`: `{"conversations": [{"from": "human" | "gpt" | "function_call" | "observation", "value": text}], "system":
text, "tools": JSON text}`, as LLaMA-Factory reads it; who asks and who answers take turns, so what one side says twice
in a row is one turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, nearest_word
from supertiny.core.files import read_rows, write_rows
from supertiny.core.recipe import read_recipe
from supertiny.core.records import Answer, Call, Example, Tool, said
from supertiny.core.task import Task, load_task

READERS: Mapping[str, str] = {
    "messages": "TRL and Unsloth as it is; Axolotl: type: chat_template",
    "sharegpt": 'LLaMA-Factory: "formatting": "sharegpt", '
    '"columns": {"messages": "conversations", "system": "system", "tools": "tools"}',
}
_SPLITS = ("train", "labelled", "valid")
_ASKING = ("human", "observation")
_SPEAKERS = {"user": "human", "assistant": "gpt", "tool": "observation"}
_SYSTEM = ("system", "developer")


def export(source: Path, target: Path, style: str = "messages", split: str | None = None) -> tuple[str, int]:
    """Writes the rows that a run's student learns from, or a task's labelled ones; gives their split and number.

    `split` may say `valid` instead. Rows without an answer are left out. Raises UserError for a source that is neither
    run nor task, an unknown style or split, and a target that is there already.
    """
    if style not in READERS:
        raise UserError(f"--as: there is no shape {style!r}", nearest_word(style, READERS))
    if split is not None and split not in _SPLITS:
        raise UserError(f"--split: {split!r} cannot be exported", nearest_word(split, _SPLITS))
    if target.exists():
        raise UserError(f"{target} is there already", "move it away, or name another file")
    task, rows, chosen = _examples(source, split)
    answered = [(row, row.answer) for row in rows if row.answer is not None and row.answer.readable]
    shape = _of_messages if style == "messages" else _of_sharegpt
    write_rows(target, (shape(row, answer, row.request.tools or task.tools) for row, answer in answered))
    return chosen, len(answered)


def _examples(source: Path, split: str | None) -> tuple[Task, Sequence[Example], str]:
    if not source.is_dir():
        raise UserError(f"there is no folder {source}", "give a run, such as runs/smart_home, or a task's folder")
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


def _of_messages(row: Example, answer: Answer, tools: Sequence[Tool]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for message in row.request.messages:
        if message.get("tool_calls"):
            calls = [Call.from_json(call) for call in message["tool_calls"]]
            named = _tool_calls(calls, [call.get("id") for call in message["tool_calls"]])
            messages.append({**message, "content": said(message), "tool_calls": named})
        else:
            messages.append(dict(message))
    last: dict[str, Any] = {"role": "assistant", "content": answer.text}
    messages.append({**last, "tool_calls": _tool_calls(answer.calls)} if answer.calls else last)
    return {"messages": messages, "tools": [tool.to_openai() for tool in tools]}


def _tool_calls(calls: Sequence[Call], ids: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Calls in OpenAI's form; an id has nine letters and digits, which is what the strictest chat templates ask for."""
    named = [*ids, *[None] * (len(calls) - len(ids))]
    return [
        {"id": own or f"call{number:05}", "type": "function", "function": call.to_json()}
        for number, (call, own) in enumerate(zip(calls, named, strict=True))
    ]


def _of_sharegpt(row: Example, answer: Answer, tools: Sequence[Tool]) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for message in row.request.messages:
        if message.get("role") not in _SYSTEM:
            calls = [Call.from_json(call) for call in message.get("tool_calls") or ()]
            _add_turn(turns, _SPEAKERS[str(message.get("role"))], said(message), calls)
    _add_turn(turns, "gpt", answer.text, answer.calls)
    system = "\n".join(filter(None, (said(m) for m in row.request.messages if m.get("role") in _SYSTEM)))
    functions = json.dumps([tool.to_openai()["function"] for tool in tools], ensure_ascii=False)
    return {"conversations": turns, "system": system, "tools": functions}


def _add_turn(turns: list[dict[str, str]], speaker: str, value: str, calls: Sequence[Call]) -> None:
    if calls:  # one as an object, several as a list
        written = [call.to_json() for call in calls]
        speaker, value = "function_call", json.dumps(written[0] if len(written) == 1 else written, ensure_ascii=False)
    same_side = turns and (turns[-1]["from"] in _ASKING) == (speaker in _ASKING)
    if same_side and "function_call" not in (speaker, turns[-1]["from"]):
        turns[-1]["value"] += f"\n{value}"
    else:
        turns.append({"from": speaker, "value": value})
