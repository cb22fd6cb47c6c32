"""Layers that keep less for the backward pass give the stock ones' numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from supertiny.training.sparing import Layout, head_loss, hidden_states, spared
from tests.tiny_student import open_pupil, write_student

SHAPE = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager",
}  # fmt: skip
STOCK = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM)}
STOCK |= {"qwen2": (Qwen2Config, Qwen2ForCausalLM)}  # type: ignore[dict-item]


def model_of(family: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    config, kind = STOCK[family]
    torch.manual_seed(1)
    model: Any = kind(config(**{**SHAPE, **more})).to(dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # ones would hide a forgotten factor
                weight.uniform_(0.5, 1.5)
    return model


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return ids, mask


def states_of(model: Any) -> torch.Tensor:
    ids, mask = a_batch()
    states: torch.Tensor = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    return states


def gradients(model: Any, states: torch.Tensor) -> dict[str, torch.Tensor]:
    pull = torch.randn(states.shape, generator=torch.Generator().manual_seed(3)).to(states.dtype)
    (states * pull).sum().backward()  # type: ignore[no-untyped-call]
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def held_bytes(model: Any) -> int:
    """Bytes of all that the forward pass leaves for the backward pass, weights apart."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = states_of(model)
    total = sum(kept.values())
    del states
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", STOCK)
def test_forward_is_the_stock_one_bit_for_bit_and_gradients_are_its_own(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    stock = states_of(model)
    expected = gradients(model, stock)
    with spared(model):
        ours = states_of(model)
    assert torch.equal(ours, stock)
    found = gradients(model, ours)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype == dtype
        far = (gradient.float() - expected[name].float()).norm() / expected[name].float().norm()
        assert far < (1e-5 if dtype == torch.float32 else 2e-2), name


def test_bfloat16_gradients_are_as_near_to_exact_ones_as_the_stock_ones() -> None:
    model = model_of("llama", torch.bfloat16)
    exact_model = copy.deepcopy(model).double()
    exact = gradients(exact_model, states_of(exact_model))
    stock = gradients(model, states_of(model))
    with spared(model):
        states = states_of(model)
    ours = gradients(model, states)
    far = {
        which: sum(float((found[name].double() - exact[name]).square().sum()) for name in exact)
        for which, found in {"stock": stock, "ours": ours}.items()
    }
    assert far["ours"] < 1.1 * far["stock"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", STOCK)
def test_padding_and_shared_beginnings_are_not_computed_and_the_numbers_are_the_same(family: str, side: str) -> None:
    model = model_of(family)
    ids, mask = a_batch()
    mask[2, 2:] = 0
    if side == "left":
        mask = mask.flip(1)
    else:
        ids[1, :4] = ids[0, :4]
        ids[1, 4] = ids[0, 4] + 1
        ids[1, 5] = ids[0, 5]  # alike, but after something else
    seen = []
    model.base_model.layers[1].mlp.gate_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    stock = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0] * mask[..., None]
    ours = hidden_states(model, ids, mask) * mask[..., None]
    assert seen == [(3, 9, 32), (1, 9 + 6 + 2 - (4 if side == "right" else 0), 32)]
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)
    expected, found = gradients(model, stock), gradients(model, ours)
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() < 1e-5 * expected[name].norm(), name


def test_a_layout_gives_each_place_a_token_with_the_same_beginning() -> None:
    ids = torch.tensor([[5, 6, 7, 0], [5, 6, 8, 9], [6, 6, 7, 0], [5, 6, 7, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    layout = Layout.of(ids, mask)
    assert layout.places.tolist() == [0, 1, 2, 6, 7, 8, 9, 10]
    assert layout.sources.view(4, 4).tolist() == [[0, 1, 2, 0], [0, 1, 3, 4], [5, 6, 7, 0], [0, 1, 0, 0]]
    states = torch.arange(8.0)[:, None]
    assert torch.equal(layout.picked(layout.spread(states)), states)
    assert layout.summed(mask[..., None].float())[:, 0].tolist() == [3, 3, 1, 1, 1, 1, 1, 1]


def test_a_window_shorter_than_the_rows_is_left_to_the_stock_model() -> None:
    model = model_of("mistral", sliding_window=4)
    ids, mask = a_batch()
    stock = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    assert torch.equal(hidden_states(model, ids, mask), stock)
    whole = model_of("mistral", sliding_window=None)
    assert not torch.allclose(hidden_states(whole, ids, mask)[0], stock[0])


def test_a_wrong_factor_would_be_seen_in_double_precision() -> None:
    """Each function against finite differences."""
    from supertiny.training import sparing

    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    gate, up, down = drawn(2, 3, 4), drawn(2, 3, 4), drawn(5, 4)
    assert torch.autograd.gradcheck(sparing._Gate.apply, (gate, up))
    assert torch.autograd.gradcheck(sparing._GatedDown.apply, (gate, up, down))


@pytest.mark.parametrize("family", STOCK)
def test_less_is_kept_for_the_backward_pass(family: str) -> None:
    model = model_of(family, torch.bfloat16)
    stock = held_bytes(model)
    with spared(model):
        ours = held_bytes(model)
    assert ours < 0.6 * stock


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    pupil = open_pupil(write_student(tmp_path / "student"))
    before = {id(module): dict(vars(module)) for module in pupil.model.modules()}
    config = pupil.model.config.to_dict()
    seen = []

    def stop() -> None:
        with spared(pupil.model):
            seen.append(pupil.model.config._attn_implementation)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert seen == ["sparing"]
    assert pupil.model.config._attn_implementation == "eager"
    assert {id(module): dict(vars(module)) for module in pupil.model.modules()} == before
    assert pupil.model.config.to_dict() == config


def test_nothing_is_changed_without_gradients_or_with_checkpointing() -> None:
    model = model_of("llama")
    with torch.no_grad(), spared(model):
        assert model.config._attn_implementation == "eager"
    model.gradient_checkpointing_enable()
    with spared(model):
        assert model.config._attn_implementation == "eager"


def test_dropout_falls_back_to_the_stock_attention() -> None:
    model = model_of("llama", attention_dropout=0.5).train()
    torch.manual_seed(5)
    stock = states_of(model)
    torch.manual_seed(5)
    with spared(model):
        ours = states_of(model)
    assert torch.equal(ours, stock)
    torch.manual_seed(6)
    with spared(model):
        assert not torch.equal(states_of(model), stock)  # there is dropout


def test_frozen_weights_get_no_gradient_and_layers_below_them_do() -> None:
    model = model_of("llama")
    frozen = {name for name, _ in model.named_parameters() if "layers.1" in name}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in frozen)
    with spared(model):
        found = gradients(model, states_of(model))
    assert not frozen & found.keys()
    assert any("layers.0" in name for name in found)


def test_an_adapter_on_the_down_projection_is_heard() -> None:
    model = model_of("llama")
    seen = []
    model.base_model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: seen.append(1))
    with spared(model):
        states_of(model)
    assert seen == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [1, 63, 64, 150])
def test_the_heads_loss_is_cross_entropy(dtype: torch.dtype, positions: int) -> None:
    generator = torch.Generator().manual_seed(4)
    head = torch.nn.Linear(16, 50, bias=False).to(dtype)
    torch.nn.init.uniform_(head.weight, -0.25, 0.25, generator=generator)
    states = torch.randn(positions, 16, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, 50, (positions,), generator=generator)
    results = []
    for loss in (head_loss(states, head, targets), torch.nn.functional.cross_entropy(head(states).float(), targets)):
        (3 * loss).backward()
        results.append((loss.item(), states.grad, head.weight.grad))
        states.grad = head.weight.grad = None
    (ours, *our_gradients), (stock, *stock_gradients) = results
    assert ours == pytest.approx(stock, rel=1e-6)
    for mine, theirs in zip(our_gradients, stock_gradients, strict=True):
        assert mine is not None
        assert theirs is not None
        assert (mine - theirs).norm() < (1e-6 if dtype == torch.float32 else 2e-2) * theirs.norm()


def test_a_head_with_a_bias_takes_the_plain_way() -> None:
    head = torch.nn.Linear(4, 7, bias=True)
    states, targets = torch.ones(2, 4), torch.tensor([0, 3])
    plain = torch.nn.functional.cross_entropy(head(states), targets)
    assert head_loss(states, head, targets).item() == plain.item()
