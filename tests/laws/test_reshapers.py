"""What every reshaper obeys: still stock, still answering, smaller by what was asked or the same function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from supertiny.core.errors import UserError
from supertiny.core.methods import build, cards
from tests.tiny_models import MIXTURES, calibration, distinct_weights, logits_of, loss_on, mixture, tiny
from tests.tiny_student import write_student

RESHAPERS = sorted(cards("reshapers"))
KINDS = ("llama", "qwen2", "qwen3")
FOLDING = {"smoothquant", "awq", "rotate"}  # they know no norms within the heads
OF_MIXTURES = {"latent_experts"}
PAIRS = [
    (name, kind)
    for name in RESHAPERS
    for kind in (MIXTURES if name in OF_MIXTURES else KINDS)
    if not (name in FOLDING and kind == "qwen3")
]
SETTINGS: dict[str, dict[str, Any]] = {
    "drop_blocks": {"share": 0.5},
    "narrow": {"channels": 0.25, "heads": 0.5, "width": 0.25, "multiple": 8},
    "policy_gradient": {"channels": 0.25, "heads": 0.5, "multiple": 8, "steps": 3},
    "learned_masks": {"channels": 0.25, "heads": 0.5, "multiple": 8, "steps": 4},
    "elastic": {"blocks": 0.25, "channels": 0.25, "multiple": 8, "steps": 3},
    "factorize": {"share": 0.25, "multiple": 8},
    "share_ffn": {"networks": 2},
    "share_attention": {"share": 0.25},
    "merge_heads": {"share": 0.5},
    "trim_vocabulary": {"extra_tokens": 0},
}
# What is left after it: blocks, query heads, key-value heads, channels, width.
SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "drop_blocks": (2, 4, 2, 96, 64),
    "narrow": (4, 2, 1, 72, 48),
    "policy_gradient": (4, 2, 1, 72, 64),
    "learned_masks": (4, 2, 1, 72, 64),
    "elastic": (3, 4, 2, 72, 64),
    "factorize": (4, 4, 2, 96, 48),
    "merge_heads": (4, 4, 1, 96, 64),
}
SHARING = {"share_ffn", "share_attention", *OF_MIXTURES}
PRESERVING = {"keep", *FOLDING}
LOOKING = [name for name in RESHAPERS if "calibration" in getattr(cards("reshapers")[name].load(), "needs", ())]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(write_student(tmp_path_factory.mktemp("student")))


@pytest.fixture
def reshaped(tokenizer: Any) -> Callable[..., Any]:
    def reshape(name: str, model: Any) -> Any:
        method = build("reshapers", {"method": name, **SETTINGS.get(name, {})})
        if "tokenizer" in getattr(method, "needs", ()):
            return method.reshape(model, calibration(), tokenizer)[0]
        return method.reshape(model, calibration())

    return reshape


@pytest.mark.parametrize("name", [name for name in RESHAPERS if hasattr(cards("reshapers")[name].load(), "reports")])
def test_what_takes_long_tells_how_far_it_is(name: str) -> None:
    settings = {"by": "loss"} if name == "drop_blocks" else {}
    heard: list[float] = []
    method = build("reshapers", {"method": name, **SETTINGS.get(name, {}), **settings})
    method.reshape(tiny(), calibration(), advance=lambda done, of: heard.append(done / of))
    assert heard == sorted(heard)
    assert len(set(heard)) > 1
    assert heard[-1] == 1


def model_for(name: str, kind: str = "llama", **settings: Any) -> Any:
    """A model that the method is for; it has as many rows as the tokenizer that comes with it has tokens."""
    if name in OF_MIXTURES:
        return mixture(kind if kind in MIXTURES else "qwen3_moe", **settings)
    return tiny(kind=kind, **({"vocab_size": 259} if name == "trim_vocabulary" else {}), **settings)


def test_every_reshaper_has_a_law_of_its_size() -> None:
    assert set(RESHAPERS) <= {*SHAPES, *SHARING, *PRESERVING, "trim_vocabulary"}


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_it_opens_in_stock_transformers_and_answers_the_same(
    name: str, kind: str, tmp_path: Path, reshaped: Callable[..., Any]
) -> None:
    model = model_for(name, kind)
    model = reshaped(name, model)
    model.save_pretrained(tmp_path)
    stock, told = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(stock) is type(model)
    assert not any(told[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert stock.config.num_hidden_layers == len(stock.model.layers)
    assert torch.allclose(logits_of(stock), logits_of(model), atol=1e-5)
    assert model.vocab_size == model.config.vocab_size == model.get_input_embeddings().weight.shape[0]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_configuration_alone_rebuilds_it(name: str, kind: str, reshaped: Callable[..., Any]) -> None:
    model = reshaped(name, model_for(name, kind))
    copy = type(model)(model.config).eval()
    copy.load_state_dict(model.state_dict())
    assert torch.allclose(logits_of(copy), logits_of(model), atol=1e-5)
    for linear in (part for part in model.modules() if isinstance(part, torch.nn.Linear)):
        assert tuple(linear.weight.shape) == (linear.out_features, linear.in_features)


@pytest.mark.parametrize("name", RESHAPERS)
def test_with_a_cache_it_writes_what_it_writes_without(name: str, reshaped: Callable[..., Any]) -> None:
    model = reshaped(name, model_for(name, "qwen2"))
    ids = torch.arange(20, 25)[None]
    written = [
        model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=cached, pad_token_id=0, eos_token_id=None)
        for cached in (True, False)
    ]
    assert torch.equal(written[0], written[1])
    assert written[0].shape == (1, 13)


@pytest.mark.parametrize("name", RESHAPERS)
def test_same_calibration_same_result(name: str, reshaped: Callable[..., Any]) -> None:
    left, right = (reshaped(name, model_for(name, "llama")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


@pytest.mark.parametrize("name", RESHAPERS)
def test_it_keeps_dtype_and_mode_and_can_be_taught_on(name: str, reshaped: Callable[..., Any]) -> None:
    model = reshaped(name, model_for(name, "llama").to(torch.bfloat16))
    assert not model.training
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert all(weight.grad is None for weight in model.parameters())
    batch = calibration(vocabulary=20)[0]  # tokens that a trimmed vocabulary has too
    loss_on(model, batch).backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[0] in PRESERVING])
def test_what_preserves_the_function_changes_no_logits(name: str, kind: str, reshaped: Callable[..., Any]) -> None:
    before = logits_of(tiny(kind=kind))
    assert (logits_of(reshaped(name, tiny(kind=kind))) - before).abs().max() < 1e-4


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[0] in SHAPES])
def test_what_shrinks_shrinks_by_what_was_asked(name: str, kind: str, reshaped: Callable[..., Any]) -> None:
    before = tiny(kind=kind)
    whole, tied = distinct_weights(before), bool(before.config.tie_word_embeddings)
    model = reshaped(name, before)
    blocks, heads, groups, channels, width = SHAPES[name]
    config = model.config
    assert config.hidden_size == width
    assert (config.num_hidden_layers, config.num_attention_heads) == (blocks, heads)
    assert (config.num_key_value_heads, config.intermediate_size) == (groups, channels)
    tied = tied and name != "factorize"  # which says that it unties
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert config.tie_word_embeddings == tied
    biases = 16 * (heads + 2 * groups) if kind == "qwen2" else 0
    norms = 2 * width + (32 if kind == "qwen3" else 0)
    block = 2 * 16 * (heads + groups) * width + 3 * channels * width + biases + norms
    expected = blocks * block + width + 97 * width * (1 if tied else 2)
    assert distinct_weights(model) == expected < whole


@pytest.mark.parametrize("name", sorted(set(RESHAPERS) & SHARING))
def test_what_shares_has_fewer_weights_in_memory_and_as_many_in_its_file(
    name: str, tmp_path: Path, reshaped: Callable[..., Any]
) -> None:
    before = model_for(name)
    whole = distinct_weights(before)
    experts = 2 * (4 * 48 * 32 - 16 * (4 * 48 + 32))  # in two blocks, four of 48 rows of 32, to a width of 16
    gone = {"share_ffn": 2 * 3 * 64 * 96, "share_attention": 64 * 64 + 64 * 32, "latent_experts": experts}[name]
    model = reshaped(name, before)
    assert distinct_weights(model) == whole - gone
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sum(file.get_tensor(key).numel() for key in file.keys()) == whole  # noqa: SIM118 - the file is no mapping


@pytest.mark.parametrize("name", sorted(set(RESHAPERS) & {*SHAPES, *SHARING}))
def test_an_unknown_architecture_is_refused_with_those_that_work(name: str, reshaped: Callable[..., Any]) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=16, n_layer=2, n_head=2))
    known = "mixtral, olmoe, qwen2_moe" if name in OF_MIXTURES else "llama, mistral, qwen2"
    with pytest.raises(UserError, match=f"GPT2LMHeadModel.*{known}"):
        reshaped(name, model)


@pytest.mark.parametrize("name", sorted(set(RESHAPERS) & {*SHAPES, *SHARING}))
def test_a_student_that_is_quantized_already_is_refused(name: str, reshaped: Callable[..., Any]) -> None:
    model = model_for(name)
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(UserError, match="quantized already"):
        reshaped(name, model)


@pytest.mark.parametrize("name", sorted(set(LOOKING) & {*SHAPES, *SHARING}))
def test_without_calibration_rows_it_is_refused_and_nothing_is_changed(name: str) -> None:
    model = model_for(name)
    method = build("reshapers", {"method": name, **SETTINGS.get(name, {})})
    with pytest.raises(UserError, match="no calibration rows"):
        method.reshape(model, [])
    same = zip(model.parameters(), model_for(name).parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in same)


def test_keep_changes_nothing(reshaped: Callable[..., Any]) -> None:
    model = tiny()
    before = [p.clone() for p in model.parameters()]
    assert reshaped("keep", model) is model
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
