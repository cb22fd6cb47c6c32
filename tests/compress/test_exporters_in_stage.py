"""The stage with a trimmed vocabulary and with artifacts that are folders: taught, gated and read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from supertiny.compress import stage
from supertiny.compress.exporters.dfloat11 import Dfloat11
from supertiny.compress.settings import Settings
from supertiny.core.artifact import Artifact
from supertiny.core.files import read_json, write_rows
from supertiny.core.ledger import Ledger
from supertiny.core.methods import validated
from supertiny.core.progress import Progress
from supertiny.core.run import Run
from supertiny.core.student import Student
from supertiny.training.pupil import Pupil
from tests.compress.test_vocabulary import whole_model, whole_tokenizer
from tests.small_task import examples, small_task

RECOVERY = {"method": "distil", "passes": 1, "rows": 8}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    student = tmp_path / "run" / "transfer" / "student"
    tokenizer = whole_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None  # formats write their own stop
    whole_model(tokenizer).save_pretrained(student)
    tokenizer.save_pretrained(student)
    Student(student, "compact", "tiny", 3).save_card()
    write_rows(tmp_path / "run" / "prototype" / "train.jsonl", [row.to_json() for row in examples("labelled")])
    task = replace(small_task(), valid=examples("valid", 3))
    recipe: Any = type("Recipe", (), {"seed": 3})()
    return Run(tmp_path / "run", recipe, task, Ledger(tmp_path / "run" / "ledger.sqlite"), Progress(quiet=True))


def work(run: Run, *steps: Any) -> tuple[dict[str, Any], Path]:
    engine = {"method": "openvino", "precision": "float32", "cache_gigabytes": 1}
    small = {"calibration_rows": 2, "recovery": RECOVERY, "max_tokens": 6, "parity": 0.0, "engine": engine}
    settings = validated(Settings, {"steps": list(steps), **small}, "compress")
    folder = run.folder / ".compress"
    folder.mkdir(exist_ok=True)
    return stage.run(settings, run, folder), folder


@pytest.mark.slow
def test_a_trimmed_student_is_taught_by_its_whole_self_and_keeps_the_words_of_every_row(run: Run) -> None:
    trim = {"method": "trim_vocabulary", "extra_tokens": 0}
    summary, folder = work(run, trim, {"method": "drop_blocks", "blocks": 1}, {"method": "gguf", "type": "q8_0"})
    old = AutoTokenizer.from_pretrained(run.folder / "transfer" / "student")
    pupil = Pupil.open(folder / "student")
    assert len(pupil.tokenizer) == pupil.model.config.vocab_size < len(old)
    for row in examples("labelled"):  # not of the two calibration rows alone
        text = row.request.messages[-1]["content"]
        assert pupil.tokenizer.tokenize(text) == old.tokenize(text)
    sizes = [step["parameters"] for step in read_json(folder / "steps.json")]
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3] == summary["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["dfloat11", {"method": "compressed_tensors", "type": "int8"}])
def test_an_artifact_that_is_a_folder_passes_the_same_gate(exporter: Any, run: Run) -> None:
    summary, folder = work(run, exporter)
    artifact = Artifact.open(folder / "artifact")
    assert artifact.model.name == "model.safetensors"
    assert artifact.type == summary["type"]
    assert summary["agreement"] == 1.0
    assert not list(folder.glob(".restored"))
    if exporter == "dfloat11":
        there, here = Dfloat11.read(folder / "artifact"), Pupil.open(folder / "student", "float32").model
        weight = here.get_input_embeddings().weight.detach()
        assert torch.equal(there["model.embed_tokens.weight"].float(), weight)
