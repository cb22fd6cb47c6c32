"""A run whose student is tiny, the compress stage's settings for it, and a stand-in for the engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from supertiny.compress import stage
from supertiny.compress.examining import Paper, Room
from supertiny.compress.settings import Settings
from supertiny.core.methods import validated
from supertiny.core.records import Answer, Call
from supertiny.core.run import Run

STEPS = [{"method": "drop_blocks", "blocks": 1}, {"method": "gguf", "type": "q8_0"}]


def add_merge(folder: Path, left: str = "t", right: str = "h") -> None:
    """GGUF knows no tokenizer without merges."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"][left + right] = model.config.vocab_size
    tokenizer["model"]["merges"].append([left, right])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    model.resize_token_embeddings(model.config.vocab_size + 1)
    model.save_pretrained(folder)


def settings(steps: list[Any] = STEPS, **more: Any) -> Settings:
    small = {"calibration_rows": 4, "recovery": {"method": "distil", "passes": 1, "rows": 8}, "max_tokens": 8}
    small["gate"] = {"trust_rows": 2}
    engine = {"method": "openvino", "precision": "float32", "cache_gigabytes": 1}
    read: Settings = validated(Settings, {"steps": steps, "engine": engine, **small, **more}, "compress")
    return read


def work(run: Run, chosen: Settings) -> tuple[dict[str, Any], Path]:
    folder = run.folder / ".compress"
    folder.mkdir(exist_ok=True)
    return stage.run(chosen, run, folder), folder


class Gate:
    """Stands for the engines: gold from the student, a wrong first row from artifacts until a type is right."""

    def __init__(self, wrong_until: int) -> None:
        self.left = wrong_until

    def examine(self, room: Room, engine: Any) -> Paper:
        answers = [row.answer or Answer() for row in room.task.valid]
        if engine.name == "openvino" and self.left:
            self.left -= 1
            answers[0] = Answer((Call("Wrong"),))
        figures = {"exact": 1.0, "low": 0.5, "high": 1.0, "n": len(answers), "p50_seconds": 0.1}
        return Paper(tuple(answers), figures)
