"""Mixtures of experts as GGUF files, and through the stage: what llama.cpp computes is what transformers compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from supertiny.compress import stage
from supertiny.compress.settings import Settings
from supertiny.core.artifact import Artifact
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, write_rows
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build, validated
from supertiny.core.progress import Progress
from supertiny.core.run import Run
from supertiny.core.student import Student
from tests.compress.test_vocabulary import whole_tokenizer
from tests.small_task import examples, small_task
from tests.tiny_models import MIXTURES, mixture

ROWS = 12  # experts enough that their order as text is another than as numbers
WIDTHS = {"intermediate_size": 96, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 128}


def written(folder: Path, kind: str, **settings: Any) -> Any:
    """A student whose rows are as long as llama.cpp's blocks need them; no two of its lengths are equal."""
    tokenizer = whole_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None  # formats write their own stop
    more: dict[str, Any] = {"hidden_size": 32, "num_experts": ROWS, "num_local_experts": ROWS, **WIDTHS}
    more |= {"num_attention_heads": 4, "num_key_value_heads": 4 if kind == "olmoe" else 2, "head_dim": 8}
    more |= {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = mixture(kind, **{**more, **settings})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def exported(student: Path, folder: Path, type: str) -> Path:
    build("exporters", {"method": "gguf", "type": type}).export(student, folder)
    return folder / "model.gguf"


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_stand_in_one_tensor_in_their_order(kind: str, tmp_path: Path) -> None:
    model = written(tmp_path / "student", kind)
    reader = gguf.GGUFReader(exported(tmp_path / "student", tmp_path, "f16"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    own = model.base_model.layers[1].mlp.experts
    gate, up = own.gate_up_proj.detach().chunk(2, dim=1)
    for name, expected in (("gate", gate), ("up", up), ("down", own.down_proj.detach())):
        found = tensors[f"blk.1.ffn_{name}_exps.weight"].data
        np.testing.assert_allclose(found, expected.half().numpy(), atol=1e-3)
    assert tensors["blk.1.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    told = {key.partition(".")[2]: field.contents() for key, field in reader.fields.items() if "expert" in key}
    assert (told["expert_count"], told["expert_used_count"]) == (ROWS, 2)
    lengths = {name: value for name, value in told.items() if name.endswith("feed_forward_length")}
    own_length, shared_length = WIDTHS["moe_intermediate_size"], WIDTHS["shared_expert_intermediate_size"]
    assert (
        lengths
        == {
            "mixtral": {},
            "olmoe": {},
            "qwen2_moe": {"expert_feed_forward_length": own_length, "expert_shared_feed_forward_length": shared_length},
            "qwen3_moe": {"expert_feed_forward_length": own_length},
        }[kind]
    )


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_experts_are_rounded_like_other_matrices_and_routers_are_not(type: str, tmp_path: Path) -> None:
    model = written(tmp_path / "student", "qwen2_moe")
    reader = gguf.GGUFReader(exported(tmp_path / "student", tmp_path, type))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, whole in (("ffn_gate_inp", "gate"), ("ffn_gate_inp_shexp", "shared_expert_gate")):
        router = tensors[f"blk.0.{name}.weight"]
        assert router.tensor_type == gguf.GGMLQuantizationType.F32
        own = getattr(model.base_model.layers[0].mlp, whole).weight.detach().numpy()
        np.testing.assert_allclose(router.data.reshape(own.shape), own, atol=1e-6)
    found = tensors["blk.0.ffn_down_exps.weight"]
    assert found.tensor_type == gguf.GGMLQuantizationType[type.upper()]
    whole = model.base_model.layers[0].mlp.experts.down_proj.detach().numpy()
    error = np.abs(gguf.quants.dequantize(found.data, found.tensor_type) - whole).max()
    assert 0 < error < np.abs(whole).max() / (7 if type == "q4_0" else 100)


def test_a_type_of_its_own_for_a_router_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "student", "qwen3_moe")
    exporter = build("exporters", {"method": "gguf", "types": {"*ffn_gate_inp.weight": "q8_0"}})
    with pytest.raises(UserError, match="no matrix of"):
        exporter.export(tmp_path / "student", tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob False of qwen3moe"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob True of olmoe"),
        ("olmoe", {"clip_qkv": 0.5}, "clip_qkv"),
        ("olmoe", {"num_key_value_heads": 2}, "fewer key-value heads"),
        ("olmoe", {"tie_word_embeddings": True}, "tied to the embedding"),
        ("qwen2_moe", {"tie_word_embeddings": True}, "tied to the embedding"),
        ("mixtral", {"sliding_window": 4}, "a sliding window"),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 4}, "a sliding window"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 4}, "a sliding window"),
        ("qwen3_moe", {"attention_bias": True}, "biases of attention"),
        ("olmoe", {"attention_bias": True}, "biases of attention"),
        ("qwen2_moe", {"mlp_only_layers": [1]}, "blocks without experts"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "blocks without experts"),
    ],
)
def test_a_mixture_that_llama_cpp_would_compute_otherwise_is_refused(
    kind: str, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    written(tmp_path / "student", kind, **settings)
    with pytest.raises(UserError, match=words):
        exported(tmp_path / "student", tmp_path, "f16")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [*((kind, {}) for kind in MIXTURES), *((kind, {"tie_word_embeddings": True}) for kind in ("mixtral", "qwen3_moe"))],
)
def test_llama_cpp_computes_what_transformers_compute(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = written(tmp_path / "student", kind, **settings)
    opened = llama_cpp.Llama(
        str(exported(tmp_path / "student", tmp_path, "f16")), logits_all=True, verbose=False, n_ctx=64
    )
    ids = [5, 9, 20, 31, 40, 7, 8]
    opened.eval(ids)
    found = np.array(opened.scores[: len(ids)])
    opened.close()
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["gguf", "dfloat11"])
def test_a_mixture_with_latent_experts_goes_through_the_stage(exporter: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    student = tmp_path / "transfer" / "student"
    written(student, "qwen3_moe")
    Student(student, "compact", "tiny", 3).save_card()
    write_rows(tmp_path / "prototype" / "train.jsonl", [row.to_json() for row in examples("labelled")])
    recipe: Any = type("Recipe", (), {"seed": 3})()
    task = replace(small_task(), valid=examples("valid", 3))
    run = Run(tmp_path, recipe, task, Ledger(tmp_path / "ledger.sqlite"), Progress(quiet=True))
    asked = {
        "steps": ["latent_experts", exporter],
        "recovery": {"method": "distil", "passes": 1, "rows": 8},
        "calibration_rows": 2,
        "max_tokens": 6,
        "parity": 0.0,
        "gate": {"margin": 1.0, "trust_margin": 1.0, "trust_rows": 0},
        "engine": "llama_cpp",
    }
    folder = tmp_path / ".compress"
    folder.mkdir()
    summary = stage.run(validated(Settings, asked, "compress"), run, folder)
    assert summary["promoted"]
    assert Artifact.open(folder / "artifact").type == summary["type"]
    sizes = [step["parameters"] for step in read_json(folder / "steps.json")]
    assert sizes[0] == sizes[1] == sizes[2]  # files hold the products
    from transformers import AutoModelForCausalLM

    left = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    for block in left.model.layers:
        assert torch.linalg.matrix_rank(block.mlp.experts.gate_up_proj.detach().flatten(0, 1), rtol=1e-4) == 16
