"""The whole thread in about a minute: a small task, the smallest model as teacher and student, one pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.small_task import write_task

SMALLEST = "smollm2-135m-instruct-q4_1"
IMITATE = {"method": "imitate", "passes": 1, "rows": 8}
SECTIONS: dict[str, Any] = {
    "prototype": {
        "engine": {"method": "openvino", "model": SMALLEST},
        "steps": [{"method": "retrieve", "examples": 4}, {"method": "fill", "max_tokens": 24}],
        "plain_rows": 2,
        "valid_rows": 4,
        "chunk": 8,
    },
    "transfer": {
        "student": SMALLEST,
        "learners": [{**IMITATE, "passes": 2}],
        "labelled_only": [IMITATE],
        "evaluations": 1,
        "valid_rows": 4,
        "checkpoint_steps": 2,
    },
    # What is asked here is whether the thread holds; so small a student is not asked to be the same in 4 bits.
    "compress": {
        "steps": [{"method": "drop_blocks", "share": 0.1}, {"method": "gguf", "type": "q8_0"}],
        "recovery": {"method": "distil", "passes": 1, "rows": 8},
        "recovery_rows": 8,
        "calibration_rows": 8,
        "parity": 0.0,
        "gate": {"margin": 1.0, "trust_margin": 1.0, "trust_rows": 0},
        "max_tokens": 24,
    },
    "serve": {"max_tokens": 24},
    "report": {"latency_requests": 2, "warm_up_requests": 0},
}
COUNTS = {"labelled": 24, "unlabelled": 18, "valid": 8, "test": 12}
_PROGRAM = """
import sys
from pathlib import Path
from supertiny import pipeline
from supertiny.core.progress import Progress
pipeline.execute(pipeline.load_recipe(Path(sys.argv[1])), progress=Progress(quiet=True))
"""


def write_recipe(folder: Path) -> Path:
    """Writes task and recipe; the run's results go to `folder/run`."""
    write_task(folder / "task", COUNTS)
    recipe = {"name": "small", "task": str(folder / "task"), "folder": str(folder / "run"), "seed": 7, **SECTIONS}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder / "recipe.yaml"


def begin(recipe: Path) -> subprocess.Popen[bytes]:
    """Runs the recipe in a process of its own."""
    source = Path(__file__).parents[1] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, "-c", _PROGRAM, str(recipe)], env=environment, stderr=subprocess.PIPE)
