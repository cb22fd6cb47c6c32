"""Mistakes that the local engines must name, and what replay gives back; no model is opened here."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from supertiny.core.errors import UserError
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build
from supertiny.core.records import Completion, Grammar, Prompt, Sampling
from supertiny.engines import _llama_engine
from supertiny.engines._gguf_file import read_header


def _gguf(path: Path, architecture: str = "llama", rows: int = 64) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(200)])
    writer.add_string("tokenizer.chat_template", "{{ messages }} 灯")
    writer.add_tensor("token_embd.weight", np.zeros((rows, 32), np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_header_says_what_the_file_holds(tmp_path: Path) -> None:
    path = _gguf(tmp_path / "model.gguf")
    header = read_header(path)
    assert header.architecture == "llama"
    assert header.tensor_types == {"F16": 1, "F32": 1}
    assert header.metadata["tokenizer.chat_template"].endswith("灯")
    assert 0 <= path.stat().st_size - header.bytes < 32  # the writer may pad its end


@pytest.mark.parametrize("method", ["openvino", "llama_cpp"])
@pytest.mark.parametrize("kept", [0, 3, 20, 300, -40])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, method: str, kept: int) -> None:
    path = _gguf(tmp_path / "cut.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cut\.gguf"):
        build("engines", method).open(path)


def test_an_unknown_architecture_is_refused_with_what_works(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"odd\.gguf.*'mamba'.*llama, qwen2"):
        build("engines", "openvino").open(_gguf(tmp_path / "odd.gguf", "mamba"))


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    for method in ("openvino", "llama_cpp", "torch", "replay"):
        with pytest.raises(UserError, match=r"no model|nothing to replay"):
            build("engines", method).open()
        with pytest.raises(UserError, match="absent"):
            build("engines", method).open(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="not a Hugging Face folder"):
        build("engines", "torch").open(tmp_path)


def test_llama_cpp_says_its_size_and_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(tokens_of=lambda prompt: list(prompt.text.encode()))
    monkeypatch.setattr(_llama_engine, "LlamaModel", lambda *_: model)
    path = _gguf(tmp_path / "model.gguf")
    engine: Any = build("engines", "llama_cpp").open(path)
    assert engine.bytes == path.stat().st_size
    assert engine.tokens(Prompt(text="ab")) == [97, 98]


def test_replay_answers_from_a_mapping_and_names_an_unknown_prompt(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"включи свет": "on", "hi there": "hello"}))
    engine = build("engines", {"method": "replay", "source": str(path)}).open()
    prompts = [Prompt(text="hi there"), Prompt(({"role": "user", "content": "включи "},), "свет")]
    told: list[int] = []
    completions = engine.complete(prompts, Sampling(), done=lambda index, completion: told.append(index))
    assert [completion.text for completion in completions] == ["hello", "on"]
    assert told == [0, 1]
    with pytest.raises(UserError, match="never asked"):
        engine.complete([Prompt(text="never asked")], Sampling())


def test_replay_answers_from_a_ledger_by_prompt_sampling_and_grammar(tmp_path: Path) -> None:
    source = tmp_path / "answers.json"
    source.write_text(json.dumps({"a": "first"}))
    ledger = Ledger(tmp_path / "ledger.sqlite")
    recorded = ledger.wrap(build("engines", "replay").open(source), "test")
    grammar = Grammar("regex", "first|second")
    (wanted,) = recorded.complete([Prompt(text="a")], Sampling(7), [grammar])
    ledger.close()
    engine = build("engines", "replay").open(tmp_path / "ledger.sqlite")
    (found,) = engine.complete([Prompt(text="a")], Sampling(7), [grammar])
    assert isinstance(found, Completion)
    assert asdict(found) == asdict(wanted)
    with pytest.raises(UserError, match="has no answer"):
        engine.complete([Prompt(text="a")], Sampling(8), [grammar])


def test_replay_refuses_what_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (key TEXT)")
    with pytest.raises(UserError, match="not a ledger"):
        build("engines", "replay").open(path)


@pytest.mark.parametrize(
    ("saved", "able", "opened"),
    [("float32", True, "float32"), ("bfloat16", True, "bfloat16"), ("bfloat16", False, "float32")],
)
def test_torch_opens_a_checkpoint_in_its_own_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: str, able: bool, opened: str
) -> None:
    from supertiny.engines import torch as engine

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": saved}))
    monkeypatch.setattr(engine, "_multiplies_bfloat16", lambda: able)
    assert engine._own_precision(tmp_path) == opened
