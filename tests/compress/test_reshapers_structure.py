"""What the papers of the reshapers that cut, merge and share claim, in small."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from supertiny.compress.reshapers._cutting import kept_of
from supertiny.compress.reshapers.share_attention import _followers
from supertiny.core.errors import UserError
from supertiny.training.optimiser import Optimiser
from tests.tiny_models import (
    calibration,
    distinct_weights,
    idle_blocks,
    knowing,
    logits_of,
    loss_on,
    reshaped,
    silence,
    some_channels,
    summed_loss,
    tiny,
)

CHANNELS, BLOCKS = 96, 4


# --- drop_blocks ---


@pytest.mark.parametrize(
    ("settings", "left"), [({"blocks": 1}, 3), ({"share": 0.25}, 3), ({"share": 0.0}, 4), ({"blocks": 3}, 1)]
)
def test_drop_blocks_counts_blocks_or_shares(settings: dict[str, Any], left: int) -> None:
    model = tiny()
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    whole = distinct_weights(model)
    assert distinct_weights(reshaped("drop_blocks", model, **settings)) == whole - (4 - left) * block


@pytest.mark.parametrize("by", ["influence", "loss"])
@pytest.mark.parametrize("place", [0, 2, 3])
def test_drop_blocks_drops_the_block_that_does_nothing(place: int, by: str) -> None:
    batches = calibration()
    model = idle_blocks(tiny(seed=place), [place], batches)
    expected = logits_of(model)
    small = reshaped("drop_blocks", model, batches, blocks=1, by=by)
    assert torch.allclose(logits_of(small), expected, atol=1e-4)
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1, 2]


@pytest.mark.parametrize("seed", range(2))
def test_drop_blocks_by_loss_is_greedy(seed: int) -> None:
    batches, left = calibration(), list(range(4))
    for _ in range(2):
        losses = []
        for place in left:
            rest = tiny(seed)
            rest.model.layers = torch.nn.ModuleList(rest.model.layers[p] for p in left if p != place)
            losses.append(summed_loss(rest, batches))
        del left[losses.index(min(losses))]
    small = reshaped("drop_blocks", tiny(seed), blocks=2, by="loss")
    expected = [tiny(seed).model.layers[place].mlp.up_proj.weight for place in left]
    assert all(torch.equal(a.mlp.up_proj.weight, b) for a, b in zip(small.model.layers, expected, strict=True))


def test_drop_blocks_leaves_one() -> None:
    with pytest.raises(UserError, match="4 of 4"):
        reshaped("drop_blocks", tiny(), blocks=4)


# --- narrow ---


@pytest.mark.parametrize("by", ["activation", "fluctuation", "gradient"])
def test_narrow_finds_dead_channels_where_magnitude_and_chance_do_not(by: str) -> None:
    model, batches = knowing()
    dead = some_channels(BLOCKS, CHANNELS, 0.5)
    silence(model, dead)
    with torch.no_grad():
        for block, row in zip(model.model.layers, dead, strict=True):
            block.mlp.gate_proj.weight[row] *= 3  # the largest weights, and of no use
    expected = logits_of(model)

    def change(by: str) -> float:
        small = reshaped("narrow", copy.deepcopy(model), batches, channels=0.5, by=by, multiple=8)
        return float((logits_of(small) - expected).abs().max())

    assert change(by) < 1e-4
    assert min(change("random"), change("magnitude")) > 1e-2


@pytest.mark.parametrize("by", ["activation", "fluctuation", "gradient"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_narrow_cuts_a_dead_head_without_loss(kind: str, by: str) -> None:
    model = tiny(kind=kind)
    with torch.no_grad():
        for place, block in enumerate(model.model.layers):
            head = place % 2
            block.self_attn.o_proj.weight[:, 32 * head : 32 * head + 32] = 0
    expected = logits_of(model)
    small = reshaped("narrow", model, channels=0, heads=0.5, by=by)
    assert small.config.num_attention_heads == 2
    assert torch.allclose(logits_of(small), expected, atol=1e-4)


def quiet(model: Any, kept: int) -> torch.Tensor:
    """Makes all but `kept` dimensions of the hidden state zero everywhere; true where one is left."""
    live = torch.zeros(64, dtype=torch.bool)
    live[torch.randperm(64, generator=torch.Generator().manual_seed(1))[:kept]] = True
    with torch.no_grad():
        model.model.embed_tokens.weight[:, ~live] = 0
        for block in model.model.layers:
            block.self_attn.o_proj.weight[~live] = 0
            block.mlp.down_proj.weight[~live] = 0
    return live


@pytest.mark.parametrize("by", ["activation", "fluctuation", "gradient"])
def test_narrow_cuts_dead_dimensions_without_loss(by: str) -> None:
    model = tiny()
    quiet(model, 40)
    expected = logits_of(model)
    small = reshaped("narrow", model, channels=0, width=0.375, by=by, multiple=8)
    assert small.config.hidden_size == 40
    assert torch.allclose(logits_of(small), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "settings", "told"),
    [
        ({}, {"channels": 0.99}, r"narrow, FFN channels.*nearest shares: 0.333 or 0.667"),
        ({}, {"channels": 0, "width": 0.1, "multiple": 24}, r"hidden width.*multiple of 24"),
        ({"num_key_value_heads": 1}, {"channels": 0, "heads": 0.5}, r"1 cannot be cut"),
        (
            {"num_attention_heads": 8, "num_key_value_heads": 8},
            {"channels": 0, "heads": 0.4},
            r"5 heads do not divide the hidden width 64.*work: 0.875, 0.750, 0.500",
        ),
        ({"intermediate_size": 24}, {"channels": 0.5}, r"24 cannot be cut to a smaller multiple of 32.*lower"),
    ],
)
def test_narrow_refuses_shapes_that_cannot_be_had(shape: dict[str, Any], settings: dict[str, Any], told: str) -> None:
    model = tiny(**shape)
    before = distinct_weights(model)
    with pytest.raises(UserError, match=told):
        reshaped("narrow", model, **settings)
    assert distinct_weights(model) == before


@pytest.mark.parametrize(("share", "kept"), [(0.2, 1216), (0.3, 1088), (0.0, 1536)])
def test_channels_of_a_real_student_stay_multiples_of_32(share: float, kept: int) -> None:
    assert kept_of(1536, share, 32, "channels") == kept


# --- factorize ---


def turned(model: Any) -> None:
    """Turns the hidden state by a random rotation; the norms' weights must be one."""
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(2)))[0]
    with torch.no_grad():
        for block in model.model.layers:
            attention, ffn = block.self_attn, block.mlp
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, ffn.gate_proj, ffn.up_proj):
                part.weight.copy_(part.weight @ rotation)
            for part in (attention.o_proj, ffn.down_proj):
                part.weight.copy_(rotation.T @ part.weight)
        for part in {id(p.weight): p for p in (model.model.embed_tokens, model.lm_head)}.values():
            part.weight.copy_(part.weight @ rotation)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_factorize_is_exact_where_the_hidden_state_has_low_rank_and_dimensions_do_not(kind: str) -> None:
    model = tiny(kind=kind)
    quiet(model, 40)
    turned(model)  # the states lie in 40 dimensions now, of which no axis is one; norms' weights differ still
    expected = logits_of(model)

    def change(name: str, **settings: Any) -> float:
        small = reshaped(name, copy.deepcopy(model), multiple=8, **settings)
        assert small.config.hidden_size == 40
        return float((logits_of(small) - expected).abs().max())

    assert change("factorize", share=0.375) < 1e-3
    assert change("narrow", channels=0, width=0.375) > 1e-2


def test_factorize_refuses_what_would_grow() -> None:
    with pytest.raises(UserError, match=r"own matrix would make the student larger.*trim_vocabulary"):
        reshaped("factorize", tiny(vocab_size=9000), share=0.25, multiple=8)


# --- merge_heads ---


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_merging_equal_heads_is_exact(kind: str) -> None:
    model = tiny(kind=kind, num_key_value_heads=4)
    with torch.no_grad():
        for block in model.model.layers:
            for part in (block.self_attn.k_proj, block.self_attn.v_proj):
                for tensor in part.parameters():
                    heads = tensor.view(4, 16, -1)
                    heads[1], heads[3] = heads[0], heads[2]
    expected = logits_of(model)
    small = reshaped("merge_heads", model, share=0.5)
    assert small.config.num_key_value_heads == 2
    assert torch.allclose(logits_of(small), expected, atol=1e-5)


def test_merge_heads_takes_the_mean() -> None:
    model = tiny()
    before = model.model.layers[1].self_attn.v_proj.weight.detach().clone()
    small = reshaped("merge_heads", model, share=0.5)
    assert torch.allclose(small.model.layers[1].self_attn.v_proj.weight, (before[:16] + before[16:]) / 2)


@pytest.mark.parametrize(
    ("groups", "share", "told"), [(3, 0.33, "into 2.*work: 0.667"), (4, 0.25, "0.750, 0.500"), (1, 0.5, "it has one")]
)
def test_merge_heads_names_the_shares_that_work(groups: int, share: float, told: str) -> None:
    heads = {3: 6, 4: 4, 1: 4}[groups]
    model = tiny(hidden_size=96, num_attention_heads=heads, num_key_value_heads=groups)
    with pytest.raises(UserError, match=told):
        reshaped("merge_heads", model, share=share)


# --- share_ffn, share_attention ---


@pytest.mark.parametrize("start", ["best", "mean"])
def test_equal_networks_are_shared_without_loss(start: str) -> None:
    model = tiny()
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.load_state_dict(model.model.layers[0].mlp.state_dict())
    expected = logits_of(model)
    small = reshaped("share_ffn", model, start=start)
    assert torch.allclose(logits_of(small), expected, atol=1e-5)


def test_share_ffn_takes_the_network_that_costs_least() -> None:
    batches, losses = calibration(), []
    for place in range(4):
        model = tiny()
        for block in model.model.layers:
            block.mlp = model.model.layers[place].mlp
        losses.append(summed_loss(model, batches))
    small = reshaped("share_ffn", tiny())
    best = tiny().model.layers[losses.index(min(losses))].mlp.up_proj.weight
    assert all(torch.equal(block.mlp.up_proj.weight, best) for block in small.model.layers)


@pytest.mark.parametrize(
    ("name", "settings", "part"),
    [
        ("share_ffn", {}, lambda block: block.mlp.down_proj.weight),
        ("share_attention", {"share": 0.25}, lambda block: block.self_attn.k_proj.weight),
    ],
)
def test_shared_weights_are_taught_as_one_and_saved_for_each(
    name: str, settings: dict[str, Any], part: Callable[[Any], torch.Tensor], tmp_path: Path
) -> None:
    model = reshaped(name, tiny(), **settings)
    start = logits_of(model)
    optimiser = Optimiser(list(model.parameters()), 1e-2)
    for batch in calibration():
        loss_on(model, batch).backward()  # type: ignore[no-untyped-call]
        optimiser.step(1e-2)
    assert not torch.allclose(logits_of(model), start, atol=1e-3)
    copy.deepcopy(model).to(torch.float32).save_pretrained(tmp_path)  # as a pupil is saved
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits_of(stock), logits_of(model), atol=1e-5)
    weights = [part(block) for block in stock.model.layers]
    assert torch.equal(weights[1], weights[2])
    assert weights[1].data_ptr() != weights[2].data_ptr()
    assert distinct_weights(stock) > distinct_weights(model)


def test_share_attention_shares_between_the_most_alike_neighbours() -> None:
    for place in (2, 3):
        model = tiny(num_hidden_layers=6)
        layers = model.model.layers
        with torch.no_grad():
            for i, block in enumerate(layers):
                for part in (block.self_attn.q_proj, block.self_attn.k_proj):
                    part.weight.mul_(30)  # attention that looks somewhere
                if i != place - 1:  # and a block before that changes nothing, so that both see the same states
                    continue
                block.self_attn.o_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
            before, own = layers[place - 1], layers[place]
            own.self_attn.q_proj.load_state_dict(before.self_attn.q_proj.state_dict())
            own.self_attn.k_proj.load_state_dict(before.self_attn.k_proj.state_dict())
            own.input_layernorm.load_state_dict(before.input_layernorm.state_dict())
        expected = logits_of(model)
        kind = model.config._attn_implementation
        small = reshaped("share_attention", model, share=0.17)
        assert small.model.layers[place].self_attn.q_proj is small.model.layers[place - 1].self_attn.q_proj
        assert torch.equal(logits_of(small), expected)
        assert small.config._attn_implementation == kind


def test_followers_leave_room_for_all_that_were_asked_for() -> None:
    likeness = torch.tensor([0.0, 0.1, 0.2, 0.9, 0.2, 0.3, 0.0])  # inner blocks 1 to 5
    assert _followers(likeness, 1, 2) == [3]
    assert _followers(likeness, 2, 2) == [3, 5]
    assert _followers(likeness, 3, 3) == [2, 3, 5]
    assert _followers(torch.tensor([0.0, 0.1, 0.2, 0.9, 0.2, 0.0]), 2, 2) == [2, 4]  # 3 would stand alone


def test_sharing_refuses_more_than_there_is() -> None:
    with pytest.raises(UserError, match="from 1 to 1 can"):
        reshaped("share_attention", tiny(), share=0.5)
    with pytest.raises(UserError, match="four blocks"):
        reshaped("share_attention", tiny(num_hidden_layers=2), share=0.5)
    with pytest.raises(UserError, match="4 networks for 4 blocks"):
        reshaped("share_ffn", tiny(), networks=4)
