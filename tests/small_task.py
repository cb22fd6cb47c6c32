"""A task of three functions, made in a folder or in memory: phrasings of valid and test stand in no other split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supertiny.core.records import Answer, Call, Example, Request, Tool
from supertiny.core.task import Task

AREAS = ("Kitchen", "Bedroom", "Garden", "Hall", "Office", "Attic")
TOOLS: list[dict[str, Any]] = [
    {
        "name": name,
        "description": about,
        "parameters": {"type": "object", "properties": places | more, "required": needed},
    }
    for places in [{"area": {"type": "string", "enum": list(AREAS)}}]
    for name, about, more, needed in (
        ("TurnOn", "switch the light of an area on", {}, ["area"]),
        ("TurnOff", "switch the light of an area off", {}, ["area"]),
        ("Dim", "set the brightness of an area's light", {"level": {"type": "integer"}}, ["area", "level"]),
    )
]
PHRASES = {
    "labelled": {
        "TurnOn": ("turn on the {area} light", "lights on in the {area}"),
        "TurnOff": ("turn off the {area} light",),
        "Dim": ("dim the {area} to {level}",),
    },
    "unlabelled": {
        "TurnOn": ("please illuminate the {area}",),
        "TurnOff": ("make it dark in the {area}",),
        "Dim": ("{area} brightness {level} percent",),
    },
    "valid": {
        "TurnOn": ("could we have some light in the {area}",),
        "TurnOff": ("kill the {area} lamp now",),
        "Dim": ("bring the lamp of the {area} down to {level}",),
    },
    "test": {
        "TurnOn": ("{area}: shine!",),
        "TurnOff": ("no light is needed in the {area} any more",),
        "Dim": ("level {level} will do for the {area}",),
    },
}


def rows(split: str, count: int | None = None) -> list[dict[str, Any]]:
    """Rows of a split in the task's own format."""
    made = []
    for place, area in enumerate(AREAS):
        for tool, phrases in PHRASES[split].items():
            arguments: dict[str, Any] = {"area": area}
            if tool == "Dim":
                arguments["level"] = 10 + 15 * place
            for phrase in phrases:
                text = phrase.format(area=area.lower(), level=arguments.get("level"))
                made.append({"text": text, "calls": [{"name": tool, "arguments": arguments}]})
    return made[:count]


def write_task(folder: Path, counts: dict[str, int] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tools = [{"type": "function", "function": tool} for tool in TOOLS]
    (folder / "tools.json").write_text(json.dumps(tools), encoding="utf-8")
    (folder / "task.yaml").write_text("name: small\ndescription: Lights of a home.\n", encoding="utf-8")
    for split in PHRASES:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows(split, (counts or {}).get(split))]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def example(text: str, calls: Sequence[Call] = (), id: str = "", **provenance: Any) -> Example:
    return Example(Request.from_text(text, id or text), Answer(tuple(calls)), provenance=provenance)


def examples(split: str, count: int | None = None) -> tuple[Example, ...]:
    made = []
    for number, row in enumerate(rows(split, count)):
        calls = [Call.from_json(call) for call in row["calls"]]
        made.append(example(row["text"], calls, f"{split}-{number}", source=split))
    return tuple(made)


def small_task(tools: Sequence[Tool] | None = None, **splits: Sequence[Example]) -> Task:
    """A task in memory; splits that are not given are those of the small task."""
    filled = {split: tuple(splits[split]) if split in splits else examples(split) for split in PHRASES}
    known = tuple(tools) if tools is not None else tuple(Tool.from_openai(tool) for tool in TOOLS)
    return Task("small", "Lights of a home.", Path("small"), known, **filled, pool_gold={}, hash="0")
