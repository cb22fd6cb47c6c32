"""BFCL by the leaderboard's own checker: one plain prompt against a pipeline, on requests that bring their own tools.

There are no labelled rows of these functions; what the step `relevance` learns, it learns from another set, xlam1k.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks._data import CATEGORIES, Case, bfcl_cases, folder_of, xlam_rows
from benchmarks._measuring import Room, Row, answered, line, shares
from supertiny.core.errors import UserError
from supertiny.core.records import Answer, Call, Example, Tool
from supertiny.core.scoring import plain_value
from supertiny.core.task import Task

ROWS = 50  # of each category
STEPS: tuple[Any, ...] = ({"method": "fill", "max_tokens": 256}, {"method": "check", "max_tokens": 256}, "relevance")
PLAIN: tuple[Any, ...] = ({"method": "plain", "max_tokens": 256},)
PLAIN_WORDS = "Turn the user's request into calls of the functions."
WORDS = (
    f"{PLAIN_WORDS} Make one call for every thing that is asked for: several cities, dates or numbers are several "
    "calls, unless the function takes a list. Take values from the request; leave out optional arguments that it does "
    "not state. Call nothing where no function does what is asked, however near its name or its arguments sound."
)
_CHECKER = Path(__file__).with_name("_bfcl_checker.py")
INSTALL = (
    "python -m venv .venv-bfcl && .venv-bfcl/bin/pip install --no-deps bfcl-eval==2026.3.23, "
    "then --bfcl-python .venv-bfcl/bin/python"
)
Calls = tuple[Call, ...]


def bfcl(room: Room, python: Path | None) -> tuple[list[Row], list[dict[str, Any]]]:
    """(figures, a table by category)."""
    checker = checker_python(python)
    folder = folder_of("bfcl", room.data)
    known = xlam_rows(room.data)
    if not known:
        room.progress.note("  xlam1k is not there: every call that the model makes stands")
    figures: list[Row] = []
    table = []
    once = 0.0  # the labelled rows are the same in every category
    ways = {"plain": (PLAIN, PLAIN_WORDS), "pipeline": (STEPS, WORDS), "without relevance": (STEPS[:-1], WORDS)}
    for category in CATEGORIES:
        cases = bfcl_cases(folder, category, room.count(ROWS, 5), room.seed)
        calls: list[Calls] = []
        seconds = {}
        for way, (steps, words) in ways.items():
            task = _task(category, words, known)
            answers, seconds[way], prepared = answered(room, task, way, [c.request for c in cases], steps, "chat_json")
            once = max(once, prepared)
            calls += [stated(answer, case) for answer, case in zip(answers, cases, strict=True)]
        verdicts = check(checker, category, cases * len(ways), calls)
        right = {way: verdicts[n * len(cases) : (n + 1) * len(cases)] for n, way in enumerate(ways)}
        for way in ("plain", "pipeline"):
            figures += shares(f"bfcl_{category}_{way}", "by the leaderboard's checker", right[way])
            figures.append((f"bfcl_{category}_{way}_seconds", "seconds a request", seconds[way]))
        against = "plain", right["plain"]
        table += [line(f"{category}: {way}", hits, against, seconds=seconds[way]) for way, hits in right.items()]
        room.progress.note(f"  bfcl {category}: " + ", ".join(f"{n} {sum(h)}/{len(h)}" for n, h in right.items()))
    figures.append(("bfcl_preparation_seconds", "questions about labelled rows, asked once", once))
    return figures, table


def _task(category: str, words: str, known: Sequence[Example]) -> Task:
    return Task(f"bfcl {category}", words, Path("bfcl"), (), tuple(known), (), (), (), pool_gold={}, hash=category)


def stated(answer: Answer, case: Case) -> Calls:
    """The answer's calls of known functions; 5.0 is 5 where the schema says integer, which the checker asks for."""
    known = {tool.name: tool for tool in case.request.tools}
    return tuple(_whole_numbers(call, known[call.tool]) for call in answer.calls if call.tool in known)


def _whole_numbers(call: Call, tool: Tool) -> Call:
    schemas = tool.parameters.get("properties", {})
    whole = {
        name: plain_value(value, schemas[name])
        for name, value in call.arguments.items()
        if schemas.get(name, {}).get("type") == "integer"
    }
    return replace(call, arguments={**call.arguments, **whole})


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
