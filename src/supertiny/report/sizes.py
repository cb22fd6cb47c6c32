"""How big the model behind an answerer is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from supertiny.core.models import catalogue
from supertiny.core.protocols import Answerer

if TYPE_CHECKING:
    from supertiny.core.run import Run

_FILES = {
    "student": "transfer/student/*.safetensors",
    "labelled_only": "transfer/labelled_only/*.safetensors",
    "artifact": "compress/artifact/model.gguf",
}


def model_bytes(run: Run, name: str, answerer: Answerer) -> int:
    """What the answerer says; else its files in the run, or its model in the catalogue; 0 where nobody knows."""
    said = int(getattr(answerer, "bytes", 0))
    if said or name == "tfidf_floor":
        return said
    if name in _FILES:
        return sum(path.stat().st_size for path in run.folder.glob(_FILES[name]))
    block: Any = run.recipe.sections.get("prototype", {}).get("engine")
    model = catalogue().get(str(block.get("model"))) if isinstance(block, Mapping) else None
    return model.bytes if model else 0
