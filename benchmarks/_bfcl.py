"""BFCL by the leaderboard's own checker: one plain prompt against a pipeline, on requests that bring their own tools.

The pipeline shows solved examples (written for this, shared by all prompts), completes freely and under a grammar only
where that left the functions' schemas, and asks of every call whether its function does what the request asks; from
which probability "yes" counts is learned from another set, xlam1k.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks._bfcl_shots import fitting_messages, fitting_question, question, shot_messages
from benchmarks._data import CATEGORIES, Case, bfcl_cases, folder_of
from benchmarks._measuring import Room, Row, by_steps, shares
from supertiny.core.errors import UserError
from supertiny.core.files import read_rows
from supertiny.core.methods import build
from supertiny.core.protocols import Format
from supertiny.core.records import Call, Completion, Prompt, Request, Sampling, Tool
from supertiny.core.scoring import paired_bootstrap, plain_value, typed
from supertiny.core.task import Task
from supertiny.formats._lawful import complete_lawfully

ROWS = 50  # of each category
CALIBRATION = 60  # pairs of a request and a function that serves it, and as many of one that does not
_CHECKER = Path(__file__).with_name("_bfcl_checker.py")
_SAMPLING = Sampling(256)
INSTALL = (
    "python -m venv .venv-bfcl && .venv-bfcl/bin/pip install --no-deps bfcl-eval==2026.3.23, "
    "then --bfcl-python .venv-bfcl/bin/python"
)
Calls = tuple[Call, ...]


def bfcl(room: Room, python: Path | None) -> tuple[list[Row], list[dict[str, Any]]]:
    """(figures, a table by category)."""
    checker = checker_python(python)
    folder = folder_of("bfcl", room.data)
    threshold = learn_threshold(room)
    figures: list[Row] = [("bfcl_fitting_threshold", "probability of yes from which a call stands", threshold)]
    table = []
    for category in CATEGORIES:
        cases = bfcl_cases(folder, category, room.count(ROWS, 5), room.seed)
        plain, plain_seconds = plain_calls(room, category, cases)
        said, kept, seconds = led_calls(room, category, cases, threshold)
        names = ("plain", "pipeline", "without asking whether it fits")
        verdicts = check(checker, category, [*cases, *cases, *cases], [*plain, *kept, *said])
        right = {name: verdicts[n * len(cases) : (n + 1) * len(cases)] for n, name in enumerate(names)}
        figures += shares(f"bfcl_{category}_plain", "one plain prompt", right["plain"])
        figures += shares(f"bfcl_{category}_pipeline", "the pipeline", right["pipeline"])
        figures += [
            (f"bfcl_{category}_plain_seconds", "seconds a request", plain_seconds),
            (f"bfcl_{category}_pipeline_seconds", "seconds a request", seconds),
        ]
        table += [_line(f"{category}: {name}", hits, right["plain"]) for name, hits in right.items()]
        room.progress.note(f"  bfcl {category}: " + ", ".join(f"{n} {sum(h)}/{len(h)}" for n, h in right.items()))
    return figures, table


def _line(name: str, hits: Sequence[bool], against: Sequence[bool]) -> dict[str, Any]:
    difference, low, high = paired_bootstrap(hits, against, seed=0)
    share = sum(hits) / max(1, len(hits))
    versus = {"against": "plain", "difference": difference, "low": low, "high": high}
    return {"step": name, "exact": share, "n": len(hits), **versus}


def plain_calls(room: Room, category: str, cases: Sequence[Case]) -> tuple[list[Calls], float]:
    """The library's plain prompt: function list, JSON grammar, no example; read as the pipeline's answers are."""
    words = "Turn the user's request into calls of the functions."
    task = Task("bfcl", words, Path(), (), (), (), (), (), pool_gold={}, hash=category)
    with room.progress.task(f"bfcl {category}: plain", len(cases), "calls") as tick:
        bench = room.bench(task, f"bfcl {category}: plain", tick)
        plain = build("steps", {"method": "plain", "max_tokens": _SAMPLING.max_tokens})
        answers = by_steps([plain], bench)([case.request for case in cases])
    calls = [read_calls(bench.form, case, answer.raw) for case, answer in zip(cases, answers, strict=True)]
    return calls, sum(answer.cost.seconds for answer in answers) / max(1, len(answers))


def led_calls(
    room: Room, category: str, cases: Sequence[Case], threshold: float
) -> tuple[list[Calls], list[Calls], float]:
    """(calls that the model wrote, those whose function does what is asked, seconds a request)."""
    form = build("formats", "chat_json")
    tools = [case.request.tools for case in cases]
    with room.progress.task(f"bfcl {category}: pipeline", 2 * len(cases), "calls") as tick:
        engine = room.watched(f"bfcl {category}: pipeline", tick)
        done = complete_lawfully(engine, led_prompts(cases), _SAMPLING, form, tools)
        said = [read_calls(form, case, one.text) for case, one in zip(cases, done, strict=True)]
        pairs = [
            (place, tool)
            for place, (known, calls) in enumerate(zip(tools, said, strict=True))
            for tool in known
            if tool.name in {call.tool for call in calls}
        ]
        questions = fitting_prompts([(tool, cases[place].request) for place, tool in pairs])
        asked = engine.complete(questions, Sampling(1))
    fits = {
        (place, tool.name): chance_of_yes(one) >= threshold for (place, tool), one in zip(pairs, asked, strict=True)
    }
    kept = [tuple(call for call in calls if fits[place, call.tool]) for place, calls in enumerate(said)]
    seconds = sum(one.seconds for one in (*done, *asked)) / max(1, len(cases))
    return said, kept, seconds


def led_prompts(cases: Sequence[Case]) -> list[Prompt]:
    shots = shot_messages()
    earlier = [tuple(m for m in case.request.messages if m.get("role") == "system") for case in cases]
    return [
        Prompt((*shots, *words, question(case.request.tools, case.request.text)), shared=len(shots))
        for case, words in zip(cases, earlier, strict=True)
    ]


def read_calls(form: Format, case: Case, text: str) -> Calls:
    """The calls of known functions in an answer; none where it cannot be read."""
    known = {tool.name: tool for tool in case.request.tools}
    try:
        calls = typed(form.decode(tidied(text.removesuffix(form.stop))), known).calls
    except ValueError:
        return ()
    return tuple(_whole_numbers(call, known[call.tool]) for call in calls if call.tool in known)


def tidied(text: str) -> str:
    """A list of calls where the text holds calls in a fence, in tool_call marks, or one after the other."""
    plain = re.sub(r"```(?:json)?|</?tool_call>", "", text).strip()
    if not plain.startswith("{"):
        return plain or text
    rows, at, decoder = [], 0, json.JSONDecoder()
    while at < len(plain) and plain[at] == "{":
        row, at = decoder.raw_decode(plain, at)
        rows.append(row)
        at += len(plain[at:]) - len(plain[at:].lstrip(" ,\n"))
    return json.dumps(rows, ensure_ascii=False)


def _whole_numbers(call: Call, tool: Tool) -> Call:
    """5.0 is 5 where the schema says integer."""
    schemas = tool.parameters.get("properties", {})
    kinds = {name: schemas.get(name, {}).get("type") for name in call.arguments}
    arguments = {
        name: plain_value(value, schemas[name]) if kinds[name] == "integer" else value
        for name, value in call.arguments.items()
    }
    return replace(call, arguments=arguments)


def fitting_prompts(pairs: Sequence[tuple[Tool, Request]]) -> list[Prompt]:
    shared = fitting_messages()
    return [Prompt((*shared, fitting_question(tool, request.text)), shared=len(shared)) for tool, request in pairs]


def chance_of_yes(completion: Completion) -> float:
    """From the one token that was written; an engine without log-probabilities is taken at its word."""
    chance = math.exp(min(0.0, completion.logprob)) if completion.logprob is not None else 1.0
    return chance if completion.text.strip().lower().startswith("yes") else 1 - chance


def learn_threshold(room: Room) -> float:
    """The probability that parts functions which were called from others of the same row best, on xlam1k.

    0 keeps every call; so it is where xlam1k is not there.
    """
    try:
        folder = folder_of("xlam1k", room.data)
    except UserError:
        room.progress.note("  xlam1k is not there: every call that the model makes stands")
        return 0.0
    pairs = calibration_pairs(read_rows(folder / "train.jsonl"), 5 if room.quick else CALIBRATION, room.seed)
    engine = room.ledger.wrap(room.engine, "bfcl: whether a function fits, on xlam1k")
    done = engine.complete(fitting_prompts([(tool, request) for tool, request, _ in pairs]), Sampling(1))
    return best_threshold([(chance_of_yes(one), fits) for one, (_, _, fits) in zip(done, pairs, strict=True)])


def calibration_pairs(rows: Sequence[Any], count: int, seed: int) -> list[tuple[Tool, Request, bool]]:
    """`count` pairs of a request and a function that it was turned into, and `count` of one that it was not."""
    generator = random.Random(seed)
    pairs: list[tuple[Tool, Request, bool]] = []
    for row in generator.sample(list(rows), len(rows)):
        called = {call["name"] for call in row["calls"]}
        request = Request.from_text(row["text"])
        for fits in (True, False):
            tools = [tool for tool in row["tools"] if (tool["name"] in called) == fits]
            if tools and sum(known is fits for _, _, known in pairs) < count:
                chosen = generator.choice(tools)
                shape = chosen["parameters"].get("properties", chosen["parameters"])
                pairs.append((Tool(chosen["name"], chosen["description"], {"properties": shape}), request, fits))
    return pairs


def best_threshold(scored: Sequence[tuple[float, bool]]) -> float:
    """The lowest threshold with the most right decisions; a call that is wanted and dropped counts twice."""
    choices = sorted({0.0, *(chance for chance, _ in scored)})

    def cost(threshold: float) -> int:
        return sum(2 * (chance < threshold) if fits else (chance >= threshold) for chance, fits in scored)

    return min(choices, key=lambda threshold: (cost(threshold), threshold))


def checker_python(given: Path | None) -> Path:
    """The Python that has bfcl-eval. Raises UserError where none has, before anything is spent."""
    if given is not None:
        found = subprocess.run([given, "-c", "import bfcl_eval"], capture_output=True, check=False).returncode == 0
        if not found:
            raise UserError(f"{given} has no package bfcl_eval", INSTALL)
        return given
    if importlib.util.find_spec("bfcl_eval") is None:
        raise UserError("bfcl-eval, the leaderboard's own checker, is not installed here", INSTALL)
    return Path(sys.executable)


def check(python: Path, category: str, cases: Sequence[Case], calls: Sequence[Calls]) -> list[bool]:
    """The checker's verdicts, in order. Raises UserError with its words where it breaks."""
    named = "simple_python" if category == "simple" else category
    rows = [
        {
            "category": named,
            "functions": list(case.functions),
            "calls": [{call.tool: dict(call.arguments)} for call in made],
            "answers": list(case.answers),
        }
        for case, made in zip(cases, calls, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "rows.json", Path(folder) / "verdicts.json"
        source.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        done = subprocess.run([python, _CHECKER, source, target], capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no words"]
            raise UserError(f"the leaderboard's checker failed: {last[0]}", INSTALL)
        return [bool(one["valid"]) for one in json.loads(target.read_text(encoding="utf-8"))]
