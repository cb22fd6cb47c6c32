"""A GGUF as a Hugging Face folder: a matrix that the file holds twice is one again, and two matrices stay two."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from supertiny.core.methods import build
from supertiny.core.student import Student
from supertiny.engines._gguf_to_hf import load_gguf_student
from tests.worded_student import worded_pupil


def untied(folder: Path, place: Path, apart: float) -> Path:
    """A GGUF of the student with an output matrix of its own, off the embedding by noise of that relative size."""
    known = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = type(known.config).from_dict({**known.config.to_dict(), "tie_word_embeddings": False})
    model = LlamaForCausalLM(config)
    weights = known.state_dict()
    noise = torch.randn(weights["lm_head.weight"].shape, generator=torch.Generator().manual_seed(1))
    scale = apart * weights["lm_head.weight"].std()
    model.load_state_dict({**weights, "lm_head.weight": weights["lm_head.weight"] + scale * noise})
    model.save_pretrained(place / "student")
    AutoTokenizer.from_pretrained(folder).save_pretrained(place / "student")
    Student(place / "student", "compact", "tiny", 0).save_card()
    build("exporters", {"method": "gguf", "type": "f16"}).export(place / "student", place / "file")
    return place / "file" / "model.gguf"


def test_a_matrix_that_stands_there_in_two_roundings_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    worded_pupil(tmp_path / "plain").save(folder, torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    load_gguf_student(untied(folder, tmp_path / "twice", 0.05), tmp_path / "made")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32)
    assert made.config.tie_word_embeddings
    assert made.num_parameters() == whole.num_parameters()
    assert made.get_input_embeddings().weight is made.get_output_embeddings().weight


def test_two_matrices_stay_two(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    worded_pupil(tmp_path / "plain").save(folder, torch.float32)
    load_gguf_student(untied(folder, tmp_path / "two", 1.0), tmp_path / "made")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32)
    assert not made.config.tie_word_embeddings
    assert not torch.equal(made.get_input_embeddings().weight, made.get_output_embeddings().weight)
