"""A bench whose model knows the right answers: what the tests of steps are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from supertiny.core.methods import build
from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Call, Grammar, Price, Prompt, Request, Sampling, Tool
from supertiny.prototype.bench import Bench, Shelf, Trace
from supertiny.prototype.steps._spans import marked
from tests.fake_engine import FakeEngine
from tests.fake_scorer import FakeScorer
from tests.small_task import small_task

PRICE = Price(dollars_per_million_in=100_000)  # ten tokens in are a dollar
REQUESTS = (
    "turn on the kitchen", "turn off the bedroom", "tell me a joke", "nonsense", "включи 灯 💡", "dim the hall",
    "everything on",
)  # fmt: skip
BOTH = "kitchen on and bedroom off"
RIGHT = {
    "turn on the kitchen": "TurnOn area Kitchen",
    "turn off the bedroom": "TurnOff area Bedroom",
    "tell me a joke": "~",
    "включи 灯 💡": "TurnOn area Office",
    "dim the hall": "Dim area Hall; level 5",
    "dim the hall to 5": "Dim area Hall; level 5",
    "everything on": "TurnOnAll",
    BOTH: "TurnOn area Kitchen\nTurnOff area Bedroom",
    "play jazz": "Play song jazz",
}
PLAY = Tool("Play", "music", {"type": "object", "properties": {"song": {"type": "string"}}, "required": ["song"]})
ALL = Tool("TurnOnAll", "switch every light on", {"type": "object", "properties": {}})  # begins as TurnOn does
COMPACT = build("formats", "compact")


def done_with(request_text: str, call: Mapping[str, Any]) -> str:
    return f"{call['name']} done"


TASK = replace(small_task([*small_task().tools, ALL]), execute=done_with)
NEAREST = NearestExamples(TASK.labelled)
RIGHT.update({row.request.text: COMPACT.write(row.answer) for row in TASK.labelled})


def asked(prompt: Prompt) -> str:
    """The request itself: the user's message before any complaint."""
    said = [message["content"] for message in prompt.messages if message["role"] == "user"]
    text = str(next(text for text in reversed(said) if not text.startswith(("That is wrong", "Results:"))))
    return text.removeprefix("Request: ").partition("\nAnswer: ")[0].partition("\nFunction: ")[0]


def author(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """Knows the right calls; writes function names where the grammar is one of names, and judges where it is JSON.

    It marks where it is asked for marks, and says yes to the functions that are called.
    """
    text = asked(prompt)
    right = RIGHT.get(text, "[broken")
    if right != "[broken" and "[value](argument)" in str(prompt.messages[0]["content"]):
        lines = [f"{call.tool}: {marked(text, call.arguments)}" for call in COMPACT.decode(right).calls]
        return "\n".join(lines) or "none"
    if "\nFunction: " in str(prompt.messages[-1]["content"]):
        function = str(prompt.messages[-1]["content"]).partition("\nFunction: ")[2].partition("(")[0]
        return "yes" if function in right.replace("\n", " ").split(" ") else "no"
    if grammar and grammar.kind == "json_schema":
        wanted = [call.to_json() for call in COMPACT.decode(right).calls] if right != "[broken" else None
        said = prompt.messages[-1]["content"].partition("\nAnswer: ")[2].partition("\nResults:")[0]
        fits = said == "no call" if wanted == [] else said.startswith("[") and json.loads(said) == wanted
        return json.dumps({"reason": "Because.", "verdict": "pass" if fits else "fail"})
    if prompt.messages[-1]["content"].startswith("Results:"):
        return "~"
    return right.split()[0] if grammar and grammar.kind == "regex" else right


def bench(written: Callable[..., str] = author, **more: Any) -> Bench:
    engine = FakeScorer(written, PRICE, lambda prompt: RIGHT.get(asked(prompt), "[broken"))
    settings = {"engine": engine, "task": TASK, "form": COMPACT, "seed": 5, **more}
    settings.setdefault("shelf", Shelf(lambda block: FakeEngine(written, PRICE, block["source"])))
    return Bench(**{"nearest": NEAREST, **settings})


def engine_of(bench: Bench) -> FakeEngine:
    assert isinstance(bench.engine, FakeEngine)
    return bench.engine


def traces(*texts: str) -> list[Trace]:
    return [Trace(Request.from_text(text, f"id of {text}")) for text in texts or REQUESTS]


def answered(text: str, *calls: Call, raw: str = "before") -> Trace:
    return replace(traces(text)[0], calls=calls, raw=raw)


def tried() -> list[Trace]:
    """Traces as steps meet them: not answered yet, answered right, wrong, unreadably, with no call."""
    wrong = answered("dim the hall", Call("Dim", {"area": "Hall", "level": 7}), raw="Dim area Hall; level 7")
    failing = answered("turn off the bedroom", Call("TurnOff", {"area": "Cellar"}), raw="TurnOff area Cellar")
    right = answered("turn on the kitchen", Call("TurnOn", {"area": "Kitchen"}), raw="TurnOn area Kitchen")
    return [*traces(), wrong, failing, right, answered("tell me a joke", raw="~")]
