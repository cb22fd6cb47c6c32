"""smoothquant, awq and rotate change no answer, and do what their papers claim: less is lost by rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from supertiny.compress.reshapers.awq import _rounded
from supertiny.compress.reshapers.rotate import _orthogonal
from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.training.grid import round_q4_0
from supertiny.training.lessons import Batch, Lesson, collate

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 96,  # 32 x 3, as 576 is 64 x 9
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
}
METHODS: list[dict[str, Any]] = [
    {"method": "smoothquant"},
    {"method": "smoothquant", "alpha": 0.8, "inner": False},
    {"method": "awq", "tries": 5},
    {"method": "rotate"},
    {"method": "rotate", "stream": False},
    {"method": "rotate", "heads": False, "seed": 3},
]


def model_of(architecture: str, tied: bool = True, outliers: float = 1.0) -> Any:
    """A model with uneven norms; `outliers` is how much some channels stand out after them."""
    torch.manual_seed(7)
    if architecture == "qwen2":
        model: Any = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=tied))
    else:
        biased = {"attention_bias": True, "mlp_bias": True} if architecture == "llama_with_biases" else {}
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied, **biased))
    with torch.no_grad():
        for name, part in model.named_parameters():
            if "norm" in name:
                part.copy_(torch.rand_like(part) + 0.5)
                part[[5, 40, 77]] *= outliers
            elif name.endswith("bias"):
                part.normal_(0, 0.3)
    return model.eval()


def calibration() -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    lengths = (9, 30, 7, 25)
    lessons = [Lesson(tuple(torch.randint(0, 97, (n,), generator=generator).tolist()), n // 2) for n in lengths]
    return [collate(lessons[:2], 0), collate(lessons[2:], 0)]


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        there: torch.Tensor = model(ids).logits
    return there


def reshaped(settings: dict[str, Any], model: Any) -> Any:
    return build("reshapers", settings).reshape(model, calibration())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "llama_with_biases", "qwen2"])
@pytest.mark.parametrize("settings", METHODS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_logits_stay_and_the_model_opens_in_stock_transformers(
    settings: dict[str, Any], architecture: str, tied: bool, tmp_path: Path
) -> None:
    model = model_of(architecture, tied, outliers=8.0)
    expected = logits(model)
    before = [part.clone() for part in model.parameters()]
    after = reshaped(settings, model)
    assert (logits(after) - expected).abs().max() < 1e-4
    assert any(not torch.equal(a, b) for a, b in zip(before, after.parameters(), strict=False)), "nothing was folded"
    after.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (logits(stock) - expected).abs().max() < 1e-4
    untied = settings["method"] == "rotate" and settings.get("stream", True)
    assert stock.config.tie_word_embeddings == (tied and not untied)
    assert (stock.lm_head.weight is stock.model.embed_tokens.weight) == (tied and not untied)


def test_a_tied_model_whose_last_norm_is_uniform_stays_tied_under_rotation(tmp_path: Path) -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(1.7)
    expected, weights = logits(model), model.num_parameters()
    turned = reshaped({"method": "rotate"}, model)
    turned.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert stock.lm_head.weight is stock.model.embed_tokens.weight
    assert stock.num_parameters() == weights
    assert (logits(stock) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("width", [1, 2, 3, 64, 96, 144])
def test_turns_are_orthogonal_and_spread_every_channel(width: int) -> None:
    turn = _orthogonal(width, torch.Generator().manual_seed(0))
    assert torch.allclose(turn @ turn.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    power = width & -width
    assert turn.abs().max() <= 1 / power**0.5 + 1e-12


def peaks(model: Any) -> float:
    """How far inputs of the blocks' matrices stand out, largest over root mean square, mean over layers."""
    seen: list[float] = []

    def watch(module: Any, given: Any) -> None:
        rows = given[0].reshape(-1, given[0].shape[-1]).float()
        seen.append(float(rows.abs().max() / rows.square().mean().sqrt()))

    layers = [block.self_attn.q_proj for block in model.model.layers] + [b.mlp.up_proj for b in model.model.layers]
    handles = [layer.register_forward_pre_hook(watch) for layer in layers]
    logits(model)
    for handle in handles:
        handle.remove()
    return sum(seen) / len(seen)


def test_smoothquant_evens_out_what_flows_and_alpha_decides_how_much() -> None:
    before = peaks(model_of("qwen2", outliers=30.0))
    none, half, all_of_it = (
        peaks(reshaped({"method": "smoothquant", "alpha": alpha}, model_of("qwen2", outliers=30.0)))
        for alpha in (0.0, 0.5, 1.0)
    )
    assert all_of_it < half < none
    assert half < 0.7 * before


def test_rotation_evens_out_what_flows() -> None:
    before = peaks(model_of("qwen2", outliers=30.0))
    assert peaks(reshaped({"method": "rotate"}, model_of("qwen2", outliers=30.0))) < 0.6 * before


def lost(model: Any, expected: torch.Tensor, bits: int) -> float:
    """Squared change of the logits by rounding all matrices of the blocks to so many bits."""
    with torch.no_grad():
        for name, part in model.named_parameters():
            if name.endswith("_proj.weight"):
                part.copy_(_rounded(part, bits, 32))
    return float((logits(model) - expected).square().mean())


@pytest.mark.parametrize("bits", [3, 4])
def test_after_awq_less_is_lost_by_rounding_where_channels_stand_out(bits: int) -> None:
    expected = logits(model_of("llama", outliers=30.0))
    plain = lost(model_of("llama", outliers=30.0), expected, bits)
    scaled = reshaped({"method": "awq", "bits": bits}, model_of("llama", outliers=30.0))
    assert lost(scaled, expected, bits) < 0.8 * plain


def heavy() -> Any:
    """A model in which the weights of some channels are large, so that their group is rounded coarsely."""
    model = model_of("llama")
    with torch.no_grad():
        for block in model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            for norm, layers in (
                (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight[[5, 40, 77]] /= 20
                for layer in layers:
                    layer.weight[:, [5, 40, 77]] *= 20
    return model


@pytest.mark.parametrize("bits", [3, 4])
def test_after_rotation_less_is_lost_by_rounding_where_weights_stand_out(bits: int) -> None:
    expected = logits(heavy())
    assert lost(reshaped({"method": "rotate"}, heavy()), expected, bits) < 0.5 * lost(heavy(), expected, bits)


def test_awqs_rounding_is_llama_cpps() -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(1)) * 0.04
    assert torch.allclose(_rounded(weight, 4, 32), round_q4_0(weight), rtol=2e-3)  # float16 scales are all that differs


def test_what_they_cannot_do_is_a_user_error() -> None:
    other = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2))
    for method in ("smoothquant", "awq", "rotate"):
        with pytest.raises(UserError, match="GPT2LMHeadModel.*LlamaForCausalLM, Qwen2ForCausalLM"):
            reshaped({"method": method}, other)
    for method in ("smoothquant", "awq"):
        with pytest.raises(UserError, match=f"{method} has no calibration rows"):
            build("reshapers", method).reshape(model_of("llama"), [])
    with pytest.raises(UserError, match="group of 64 does not divide rows of 96.*32, 48, 96"):
        reshaped({"method": "awq", "group": 64}, model_of("llama"))
