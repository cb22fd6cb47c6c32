"""Runs of compression in processes of their own: ours, and another project's in an environment of its own.

A job is {"kind": gptq or wanda, "model": folder, "precision", "rows": token ids, "bits", "group", "sparsity", "blocks":
how many of the model's are done, 0 is all, "weights": a file for the rounded matrices, or ""}; a report is {"seconds",
"peak_gb", "tokens", ...}. Loading is not timed.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError

Report = dict[str, Any]
RIVAL = "llm-compressor"
TO_MAKE = (
    "python -m venv rival && rival/bin/pip install torch==2.13.0 llmcompressor, then --rival-python rival/bin/python"
)
_DRIVER = Path(__file__).with_name("_compress_rival.py")
_SOURCES = Path(__file__).parents[1] / "src" / "supertiny" / "compress"


def ours(job: Mapping[str, Any]) -> Report:
    """The report of a run of ours."""
    return _run([sys.executable, "-m", "benchmarks._compress_ours"], job, "supertiny")


def rivals(job: Mapping[str, Any], python: Path) -> Report:
    """The report of a run of llm-compressor. Raises UserError with its last words where it fails."""
    return _run([str(python), str(_DRIVER)], job, RIVAL)


def rival_python(given: Path | None) -> Path | None:
    """A Python that has llm-compressor; None where there is none. Raises UserError where the given one lacks it."""
    look = "import importlib.util as u; raise SystemExit(u.find_spec('llmcompressor') is None)"
    python = given or Path(sys.executable)
    try:
        if subprocess.run([python, "-c", look], capture_output=True, check=False).returncode == 0:
            return python
    except OSError:
        pass
    if given is not None:
        raise UserError(f"{given} has no {RIVAL}", TO_MAKE)
    return None


def sources() -> str:
    """Hash of the code of compress: what it rounds is another matter when that changes."""
    code = hashlib.sha256()
    for path in sorted(_SOURCES.rglob("*.py")):
        code.update(path.read_bytes())
    return code.hexdigest()[:16]


def _run(command: Sequence[str], job: Mapping[str, Any], name: str) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "job.json", Path(folder) / "report.json"
        source.write_text(json.dumps(job), encoding="utf-8")
        done = subprocess.run([*command, source, target], capture_output=True, text=True, check=False)
        if done.returncode or not target.exists():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}, no words"]
            raise UserError(f"a run of {name} failed: {last[0]}", "run it alone to see more")
        report: Report = json.loads(target.read_text(encoding="utf-8"))
        return report
