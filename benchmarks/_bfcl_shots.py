"""Solved examples that every BFCL prompt begins with; written for this benchmark, none is a row of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from supertiny.core.records import Message, Tool

SYSTEM = (
    "You turn requests into function calls. Each message lists the functions that are there, and a request. "
    'Answer with a JSON list of calls, [{"name": ..., "arguments": {...}}], and nothing else. '
    "Make one call for every thing that is asked for: several cities, dates or numbers are several calls, unless the "
    "function takes a list. Take values from the request; leave out optional arguments that it does not state. "
    "Answer [] when none of the functions does what is asked, however near its name or its arguments sound."
)


def _tool(name: str, about: str, arguments: Mapping[str, tuple[str, str]], required: Sequence[str]) -> Tool:
    properties: dict[str, Any] = {}
    for key, (kind, words) in arguments.items():
        shape = {"type": "array", "items": {"type": kind[:-1]}} if kind.endswith("s") else {"type": kind}
        properties[key] = {**shape, "description": words}
    return Tool(name, about, {"type": "object", "properties": properties, "required": list(required)})


_FERRY = _tool(
    "ferry.timetable",
    "List the ferries between two harbours on a day.",
    {
        "origin": ("string", "Harbour of departure."),
        "destination": ("string", "Harbour of arrival."),
        "day": ("string", "Day as YYYY-MM-DD. Default is today."),
        "with_car": ("boolean", "Whether a car comes along. Default is false."),
    },
    ["origin", "destination"],
)
_MEAN = _tool(
    "mean_of_numbers",
    "Compute the mean of numbers.",
    {"numbers": ("numbers", "The numbers."), "digits": ("integer", "Digits to round to. Default is 2.")},
    ["numbers"],
)
_TIDE = _tool(
    "tide_height",
    "Forecast the height of the tide at a harbour.",
    {"harbour": ("string", "Name of the harbour."), "hour": ("integer", "Hour of the day, 0 to 23.")},
    ["harbour", "hour"],
)
_PAINT = _tool(
    "paint.litres_needed",
    "Compute how many litres of paint a wall needs.",
    {
        "width": ("number", "Width in metres."),
        "height": ("number", "Height in metres."),
        "coats": ("integer", "Coats of paint. Default is 1."),
    },
    ["width", "height"],
)

Shot = tuple[tuple[Tool, ...], str, tuple[tuple[str, dict[str, Any]], ...]]
SHOTS: tuple[Shot, ...] = (
    (
        (_FERRY,),
        "When do ferries leave Oban for Craignure on the 4th of July 2025? I am bringing my car.",
        (
            (
                "ferry.timetable",
                {"origin": "Oban", "destination": "Craignure", "day": "2025-07-04", "with_car": True},
            ),
        ),
    ),
    (
        (_PAINT,),
        "How much paint do I need for a wall of 4 by 2.5 metres, and how much for one of 6 by 3 metres with two coats?",
        (
            ("paint.litres_needed", {"width": 4, "height": 2.5}),
            ("paint.litres_needed", {"width": 6, "height": 3, "coats": 2}),
        ),
    ),
    ((_PAINT,), "What colour of paint goes well with a wall of 4 by 2.5 metres and a dark floor?", ()),
    (
        (_TIDE, _MEAN, _FERRY),
        "What is the average of 3, 8.5 and 12?",
        (("mean_of_numbers", {"numbers": [3, 8.5, 12]}),),
    ),
    (
        (_MEAN, _TIDE),
        "How high will the water stand at Leith at 9 in the morning and at 9 in the evening? "
        "And give me the mean of 14 and 20.",
        (
            ("tide_height", {"harbour": "Leith", "hour": 9}),
            ("tide_height", {"harbour": "Leith", "hour": 21}),
            ("mean_of_numbers", {"numbers": [14, 20]}),
        ),
    ),
    ((_MEAN,), "What is the median household income in Dundee?", ()),
)
# (function, request, whether the function does what is asked)
FITTING: tuple[tuple[Tool, str, bool], ...] = (
    (_PAINT, "How much paint do I need for a wall of 4 by 2.5 metres?", True),
    (_PAINT, "What colour of paint goes well with a wall of 4 by 2.5 metres?", False),
    (_TIDE, "How high is the water at Leith at 9 in the morning, and what is the mean of 14 and 20?", True),
    (_MEAN, "What is the median household income in Dundee?", False),
)


def question(tools: Sequence[Tool], text: str) -> Message:
    """The functions as JSON, a line each, and the request."""
    lines = [
        json.dumps({"name": t.name, "description": t.description, "parameters": dict(t.parameters)}, ensure_ascii=False)
        for t in tools
    ]
    return {"role": "user", "content": "\n".join(["Functions:", *lines, "", f"Request: {text}"])}


def shot_messages() -> list[Message]:
    """The system message and the solved examples: what all prompts share."""
    messages: list[Message] = [{"role": "system", "content": SYSTEM}]
    for tools, text, calls in SHOTS:
        answer = [{"name": name, "arguments": arguments} for name, arguments in calls]
        messages += [question(tools, text), {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)}]
    return messages


def fitting_question(tool: Tool, text: str) -> Message:
    arguments = ", ".join(tool.parameters.get("properties", {}))
    words = f"Function {tool.name}({arguments}): {tool.description}\nRequest: {text}"
    return {"role": "user", "content": f"{words}\nDoes the function do what the request, or a part of it, asks for?"}


def fitting_messages() -> list[Message]:
    words = "You judge whether a function does what a request asks for. Answer yes or no."
    messages: list[Message] = [{"role": "system", "content": words}]
    for tool, text, fits in FITTING:
        messages += [fitting_question(tool, text), {"role": "assistant", "content": "yes" if fits else "no"}]
    return messages
