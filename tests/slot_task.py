"""A task whose values are copied from the request, and a model that knows it but for one convention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from supertiny.core.methods import build
from supertiny.core.records import Answer, Call, Example, Grammar, Prompt, Request, Sampling, Tool
from supertiny.core.task import Task
from supertiny.prototype.steps._spans import marked

ARTISTS = ("Becca", "Joy Nilo", "frank farian", "The Mark", "Ina", "Wilco", "Kan Mikami", "Ira Losco")
PLACES = ("Visalia", "East Prairie", "Oban", "Roselle", "Keachi", "Berkley", "Walden", "Datil")
BOOKS = ("Juneteenth", "Deception", "The Scoop", "Glory Season", "A Thousand Lies", "Manthan", "Ocean", "Four")
SLOTS = {
    "PlayMusic": ("artist", "sort"),
    "GetWeather": ("city", "timeRange"),
    "RateBook": ("object_name", "rating_unit", "rating_value"),
}
COMPACT, CHAT = build("formats", "compact"), build("formats", "chat_json")


def made_rows() -> list[dict[str, Any]]:
    rows = []
    for place, (artist, city, book) in enumerate(zip(ARTISTS, PLACES, BOOKS, strict=True)):
        for number, (sort, time) in enumerate((("best", "now"), ("top", "today"), ("new", "at noon"))):
            value, stars = str(number + 3), ("stars", "points")[(place + number) % 2]
            for text, name, arguments in (
                (f"play the {sort} {artist}", "PlayMusic", {"sort": sort, "artist": artist}),
                (f"weather in {city} {time}", "GetWeather", {"city": city, "timeRange": time}),
                (
                    f"give {book} {value} {stars}",
                    "RateBook",
                    {"object_name": book, "rating_value": value, "rating_unit": stars},
                ),
            ):
                rows.append({"text": text, "calls": [{"name": name, "arguments": arguments}]})
    return rows


def slot_task(**more: Any) -> Task:
    rows = [
        Example(Request.from_text(row["text"], f"row-{place}"), Answer((Call.from_json(row["calls"][0]),)))
        for place, row in enumerate(made_rows())
    ]
    tools = tuple(
        Tool(name, "", {"type": "object", "properties": {slot: {"type": "string"} for slot in slots}})
        for name, slots in SLOTS.items()
    )
    labelled = tuple(row for place, row in enumerate(rows) if place % 5)
    splits = {"labelled": labelled, "unlabelled": (), "valid": tuple(rows[::5]), "test": (), **more}
    return Task("slots", "Turn the command into a call.", Path("slots"), tools, **splits, pool_gold={}, hash="slots")


def slot_model(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """Answers every request of the task in the way that is asked for, and leaves the unit of a rating out."""
    asked = str(prompt.messages[-1]["content"])
    system = str(prompt.messages[0]["content"])
    known = {row["text"]: Call.from_json(row["calls"][0]) for row in made_rows()}
    if asked not in known:
        return "?"
    call = known[asked]
    call = Call(call.tool, {slot: value for slot, value in call.arguments.items() if slot != "rating_unit"})
    if "[value](argument)" in system:
        return f"{call.tool}: {marked(asked, call.arguments)}"
    if "JSON" in system:
        return json.dumps([call.to_json()])
    return str(COMPACT.write(Answer((call,))))
