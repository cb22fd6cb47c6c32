"""What holds for every test: no hub, one seed for drawn examples, no time limits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Servers of tests are on this machine, and what a command prints is read as plain text, wherever tests run.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
os.environ.pop("FORCE_COLOR", None)


def _own_cores() -> set[int]:
    """A worker of pytest-xdist keeps to its share of the cores: libraries that spin on the same ones crawl.

    Gives all cores, or none where processes cannot be pinned.
    """
    number, workers = os.environ.get("PYTEST_XDIST_WORKER", "")[2:], os.environ.get("PYTEST_XDIST_WORKER_COUNT", "")
    if not hasattr(os, "sched_setaffinity"):
        if workers:
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        return set()
    cores = os.sched_getaffinity(0)
    if workers:
        os.sched_setaffinity(0, sorted(cores)[int(number) % int(workers) :: int(workers)] or cores)
    return cores


_ALL_CORES = _own_cores()

# A busy machine must not turn a right answer into a failure, so drawn examples have no deadline.
settings.register_profile("house", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("house")

LAMP = {
    "type": "function",
    "function": {
        "name": "switch_lamp",
        "description": "Turns a lamp on or off.",
        "parameters": {
            "type": "object",
            "properties": {
                "room": {"type": "string", "enum": ["kitchen", "cellar", "garden"]},
                "state": {"type": "string", "enum": ["on", "off"]},
            },
            "required": ["room", "state"],
            "additionalProperties": False,
        },
    },
}
TEXTS = {
    "labelled": ["kitchen lamp on please", "make the cellar dark", "light up the garden"],
    "unlabelled": ["could someone darken the kitchen", "the garden should shine", "who won the match yesterday"],
    "valid": ["cellar: off", "no more light among the flowers"],
    "test": ["I want to read in the kitchen", "we leave the basement now"],
}


@pytest.fixture
def all_cores() -> Iterator[None]:
    """For processes of a test that wait for each other, and more for a clock."""
    own = os.sched_getaffinity(0) if _ALL_CORES else set()
    if _ALL_CORES:
        os.sched_setaffinity(0, _ALL_CORES)
    yield
    if _ALL_CORES:
        os.sched_setaffinity(0, own)


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    """A task of one function and ten rows, whose files a test may break."""
    folder = tmp_path / "lamps"
    folder.mkdir()
    (folder / "tools.json").write_text(json.dumps([LAMP]), encoding="utf-8")
    call = {"name": "switch_lamp", "arguments": {"room": "kitchen", "state": "on"}}
    for split, texts in TEXTS.items():
        rows = [{"text": text} | ({} if split == "unlabelled" else {"calls": [call]}) for text in texts]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
