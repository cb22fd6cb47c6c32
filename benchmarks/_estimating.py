"""What `--estimate` says of a run with the default steps, against what a server then bills for it by its own count."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks._faulty_server import DOLLARS_PER_MILLION_IN, DOLLARS_PER_MILLION_OUT
from supertiny.core.ledger import Ledger
from supertiny.core.progress import Progress
from supertiny.pipeline import execute, load_recipe

WRONG_EVERY = 4
"""The server errs at one of so many requests; the step `check` is taken to hand back three of ten."""
_TOOL = {
    "name": "set_light",
    "description": "Switches a light on, by the number that stands on it.",
    "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
}
_HOOKS = """
def verify(request_text, calls):
    asked = int(request_text.rpartition(" ")[2])
    right = bool(calls) and calls[0]["arguments"].get("number") == asked
    return ("pass", "") if right else ("fail", "the request names another light")
"""


class _Heard(Progress):
    """Keeps what it is told in place of showing it."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def estimate_errors(url: str, folder: Path, requests: int) -> dict[str, float]:
    """Estimates before anything is spent, runs the prototype stage, and gives by how much each estimate was off.

    `corrected` is what the run said after its first requests; both are shares of what is spent in the end.
    """
    recipe = load_recipe(_write(folder, url, requests))
    before, during = _Heard(), _Heard()
    execute(recipe, estimate=True, progress=before)
    execute(recipe, only="prototype", progress=during)
    ledger = Ledger(recipe.folder / "ledger.sqlite")
    bills = ledger.bills()
    ledger.close()
    dollars = sum(bill.dollars for bill in bills)
    (whole,) = [line for line in before.notes if line.strip().startswith("in all")]
    (corrected,) = [line for line in during.notes if "calls so far the stage takes" in line]
    return {
        "requests": float(sum(bill.calls for bill in bills)),
        "dollars": dollars,
        "error": _off(whole, dollars),
        "corrected_error": _off(corrected, dollars),
    }


def _off(line: str, dollars: float) -> float:
    """By which share of what was spent the first amount of dollars in a line is off."""
    told = re.search(r"\$([\d.]+\d)", line)
    assert told is not None, line
    return abs(float(told[1]) - dollars) / dollars


def _write(folder: Path, url: str, requests: int) -> Path:
    """A recipe with the default steps, and its task: requests of unequal length, as many of the pool as are asked."""
    task = folder / "task"
    task.mkdir(parents=True)
    (task / "task.yaml").write_text("leak_similarity: 1\n", encoding="utf-8")
    (task / "tools.json").write_text(json.dumps([{"type": "function", "function": _TOOL}]), encoding="utf-8")
    (task / "hooks.py").write_text(_HOOKS, encoding="utf-8")
    splits = {"labelled": (0, 40), "valid": (1000, 60), "test": (9000, 9), "unlabelled": (2000, requests)}
    for split, (start, count) in splits.items():
        rows = [_row(number, solved=split != "unlabelled") for number in range(start, start + count)]
        (task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    engine = {
        "method": "openai",
        "model": "small-one",
        "base_url": url,
        "concurrency": 64,
        "dollars_per_million_in": DOLLARS_PER_MILLION_IN,
        "dollars_per_million_out": DOLLARS_PER_MILLION_OUT,
    }
    report = {"answerers": ["artifact"]}  # so that nothing of the report is in the estimate
    prototype = {"engine": engine, "curators": ["verified"]}
    recipe = {"task": str(task), "folder": str(folder / "run"), "seed": 7, "prototype": prototype, "report": report}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def _row(number: int, solved: bool) -> dict[str, Any]:
    text = f"{'would you please ' * (number % 7)}switch on light {number}"
    call = {"name": "set_light", "arguments": {"number": number}}
    return {"text": text} | ({"calls": [call]} if solved else {})
