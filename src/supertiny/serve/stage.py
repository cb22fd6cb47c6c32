"""The serve stage: writes what a server needs, and makes sure that the artifact opens and answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from supertiny.core.artifact import Artifact, opens_here
from supertiny.core.errors import UserError
from supertiny.core.run import Run
from supertiny.serve.service import Service, open_artifact
from supertiny.serve.settings import Settings

__all__ = ["open_artifact", "run"]

_ARTIFACT = "compress/artifact"


def run(settings: Settings, run: Run, folder: Path) -> dict[str, Any]:
    """Writes serve.json. Raises UserError where the artifact is broken; what its engine raises is passed on."""
    artifact = Artifact.open(run.folder / _ARTIFACT)
    if not opens_here(artifact.folder):
        problem = f"no engine here opens {artifact.model} ({artifact.type})"
        raise UserError(problem, "serve its folder with vLLM, or end compress.steps with gguf")
    service = Service(run.task.name, _ARTIFACT, artifact.format, settings, run.task.tools, run.task.description)
    _ = service.routing  # a router that cannot be built is told here, not when the server starts
    row = run.task.valid[0]
    began = time.perf_counter()
    with service.opened(run.folder) as answerer:
        opened = time.perf_counter()
        answer = answerer.answer([row.request])[0]
    answered = time.perf_counter()
    service.save(folder)
    gold = row.answer.calls if row.answer else None
    verdict = run.task.verify(row.request, answer.calls, gold)
    run.progress.note(f"  the artifact opened in {opened - began:.1f} s and answered in {answered - opened:.2f} s")
    return {
        "model": service.model,
        "open_seconds": opened - began,
        "first_answer_seconds": answered - opened,
        "first_answer": {"id": row.request.id, "outcome": verdict.outcome, "tokens_out": answer.cost.tokens_out},
    }
