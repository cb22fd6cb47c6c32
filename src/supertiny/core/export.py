"""Examples as other trainers read them: one JSON object a line, in one of five shapes.

`messages`: `{"messages": [..., {"role": "assistant", "content": "", "tool_calls": [{"id", "type": "function",
"function": {"name", "arguments": {...}}}]}], "tools": [...]}`. TRL's SFTTrainer takes it as it is (a conversational
data set with a column `tools`; arguments are objects); Axolotl with `type: chat_template`; Unsloth by
`tokenizer.apply_chat_template(row["messages"], tools=row["tools"])`. TRL and Axolotl take out the nulls that Arrow puts
where rows have other arguments.

`openai`: the same with arguments as JSON text, as OpenAI's own fine-tuning wants them; for data, too, whose arguments
are text in one row and a number in another, which Arrow cannot hold in one column.

`sharegpt`: `{"conversations": [{"from": "human" | "gpt" | "function_call" | "observation", "value": text}], "system":
text, "tools": JSON text}`, as LLaMA-Factory reads it with `"formatting": "sharegpt"`; who asks and who answers take
turns, so what one side says twice in a row is one turn. Unsloth's `standardize_sharegpt` reads rows without calls.

`prompt_completion`: `{"prompt": [messages], "completion": [the answer], "tools": [...]}`: TRL's, where the loss is on
the answer alone.

`alpaca`: `{"instruction", "input", "output", "system", "history", "tools"}`, all text but `history`; the output is a
JSON list of calls, or the answer's text where it calls nothing. LLaMA-Factory's default, and Axolotl's `type: alpaca`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, nearest_word
from supertiny.core.files import read_rows, write_rows
from supertiny.core.recipe import read_recipe
from supertiny.core.records import Answer, Call, Example, Message, Tool, said
from supertiny.core.task import Task, load_task
from supertiny.core.task_rows import SPLITS

TRAIN = "train"
_ASKING, _ANSWERING = ("human", "observation"), ("gpt", "function_call")
_SPEAKERS = {"user": "human", "assistant": "gpt", "tool": "observation"}

READERS: Mapping[str, str] = {
    "messages": "TRL and Unsloth as it is; Axolotl: type: chat_template",
    "openai": "OpenAI's fine-tuning; as messages, with arguments as JSON text",
    "sharegpt": 'LLaMA-Factory: "formatting": "sharegpt", '
    '"columns": {"messages": "conversations", "system": "system", "tools": "tools"}',
    "prompt_completion": "TRL: SFTTrainer, with the loss on the answer alone",
    "alpaca": 'Axolotl: type: alpaca; LLaMA-Factory: "columns": {"prompt": "instruction", "query": "input", '
    '"response": "output", "system": "system", "history": "history", "tools": "tools"}',
}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    split: str
    """`train` of a run, or a split of a task."""
    rows: int
    unanswered: int
    """Rows that were left out, since they have no answer."""


def export(source: Path, target: Path, style: str = "messages", split: str | None = None) -> Exported:
    """Writes a run's training rows, or a split of a task, to `target`.

    Rows of `test` are written only where `split` says so. Raises UserError for a source that is neither, an unknown
    style or split, a split without answers, and a target that is there already.
    """
    if style not in READERS:
        raise UserError(f"--as: there is no shape {style!r}", nearest_word(style, READERS))
    if target.exists():
        raise UserError(f"{target} is there already", "move it away, or name another file")
    task, rows, chosen = _examples(source, split)
    answered = [row for row in rows if row.answer is not None and row.answer.readable]
    if not answered:
        hint = "export the run that labelled them: supertiny export RUN" if chosen == "unlabelled" else "give another"
        raise UserError(f"{source}: no row of {chosen!r} has an answer", hint)
    shape = _SHAPES[style]
    write_rows(target, (shape(row, row.answer, row.request.tools or task.tools) for row in answered if row.answer))
    return Exported(chosen, len(answered), len(rows) - len(answered))


def _examples(source: Path, split: str | None) -> tuple[Task, Sequence[Example], str]:
    known = (TRAIN, *SPLITS)
    if split is not None and split not in known:
        raise UserError(f"--split: there is no split {split!r}", nearest_word(split, known))
    if not source.is_dir():
        raise UserError(f"there is no folder {source}", "give a run, such as runs/smart_home, or a task's folder")
    learned = source / "prototype" / "train.jsonl"
    if (source / "recipe.yaml").is_file() and (learned.is_file() or (source / "manifest.json").is_file()):
        task = load_task(read_recipe(source / "recipe.yaml").task)
        if split in (None, TRAIN):
            if not learned.is_file():
                hint = f"finish it with `supertiny run {source / 'recipe.yaml'} --only prototype`"
                raise UserError(f"{source}: its stage prototype is not done", hint)
            return task, [Example.from_json(row) for row in read_rows(learned)], TRAIN
    else:
        task = load_task(source)
        if split == TRAIN:
            raise UserError(f"{source} is a task, which has no {TRAIN!r}", "labelled and valid have answers")
    chosen = split or "labelled"
    return task, getattr(task, chosen), chosen


def _of_messages(row: Example, answer: Answer, tools: Sequence[Tool]) -> dict[str, Any]:
    messages = [*_conversation(row.request.messages), _last(answer)]
    return {"messages": messages, "tools": [tool.to_openai() for tool in tools]}


def _of_openai(row: Example, answer: Answer, tools: Sequence[Tool]) -> dict[str, Any]:
    written = _of_messages(row, answer, tools)
    for message in written["messages"]:
        for call in message.get("tool_calls") or ():
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return written


def _of_prompt_completion(row: Example, answer: Answer, tools: Sequence[Tool]) -> dict[str, Any]:
    prompt = _conversation(row.request.messages)
    return {"prompt": prompt, "completion": [_last(answer)], "tools": [tool.to_openai() for tool in tools]}


def _of_sharegpt(row: Example, answer: Answer, tools: Sequence[Tool]) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for message in (*row.request.messages, _last(answer)):
        if message.get("role") in ("system", "developer"):
            continue
        speaker, value = _SPEAKERS[str(message.get("role"))], said(message)
        if message.get("tool_calls"):
            speaker, value = "function_call", _calls_text([Call.from_json(call) for call in message["tool_calls"]])
        side = _ASKING if speaker in _ASKING else _ANSWERING
        if turns and turns[-1]["from"] in side and "function_call" not in (speaker, turns[-1]["from"]):
            turns[-1]["value"] += f"\n{value}"
        else:
            turns.append({"from": speaker, "value": value})
    return {"conversations": turns, "system": _system(row), "tools": _tools_text(tools)}


def _of_alpaca(row: Example, answer: Answer, tools: Sequence[Tool]) -> dict[str, Any]:
    """Earlier turns are pairs of what was asked and answered; a tool's result is part of what is asked."""
    history: list[list[str]] = []
    asked: list[str] = []
    for message in row.request.messages:
        if message.get("role") == "assistant":
            calls = [Call.from_json(call) for call in message.get("tool_calls") or ()]
            answered = json.dumps([call.to_json() for call in calls], ensure_ascii=False) if calls else said(message)
            history.append(["\n".join(asked), answered])
            asked = []
        elif message.get("role") not in ("system", "developer"):
            asked.append(said(message))
    listed = json.dumps([call.to_json() for call in answer.calls], ensure_ascii=False)
    output = listed if answer.calls or not answer.text else answer.text
    written = {"instruction": "\n".join(asked), "input": "", "output": output, "system": _system(row)}
    return {**written, "history": history, "tools": _tools_text(tools)}


_SHAPES: Mapping[str, Callable[[Example, Answer, Sequence[Tool]], dict[str, Any]]] = {
    "messages": _of_messages,
    "openai": _of_openai,
    "sharegpt": _of_sharegpt,
    "prompt_completion": _of_prompt_completion,
    "alpaca": _of_alpaca,
}


def _conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The request's messages, arguments of earlier calls as objects."""
    written = []
    for message in messages:
        one = dict(message)
        if one.get("tool_calls"):
            calls = [Call.from_json(call) for call in one["tool_calls"]]
            ids = [call.get("id") for call in one["tool_calls"]]
            one |= {"content": said(message), "tool_calls": _tool_calls(calls, ids)}
        written.append(one)
    return written


def _last(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    return message | {"tool_calls": _tool_calls(answer.calls)} if answer.calls else message


def _tool_calls(calls: Sequence[Call], ids: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Calls in OpenAI's form; an id has nine letters and digits, which is what the strictest chat templates ask for."""
    named = [*ids, *[None] * (len(calls) - len(ids))]
    return [
        {"id": own or f"call{number:05}", "type": "function", "function": call.to_json()}
        for number, (call, own) in enumerate(zip(calls, named, strict=True))
    ]


def _system(row: Example) -> str:
    spoken = (said(m) for m in row.request.messages if m.get("role") in ("system", "developer"))
    return "\n".join(filter(None, spoken))


def _calls_text(calls: Sequence[Call]) -> str:
    """One call as an object, several or none as a list."""
    written = [call.to_json() for call in calls]
    return json.dumps(written[0] if len(written) == 1 else written, ensure_ascii=False)


def _tools_text(tools: Sequence[Tool]) -> str:
    return json.dumps([tool.to_openai()["function"] for tool in tools], ensure_ascii=False)
