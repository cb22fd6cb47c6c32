"""What the papers of the reshapers that learn what to cut claim, in small."""

from __future__ import annotations

import copy

import pytest
import torch

from supertiny.compress.reshapers._task_loss import gated, only_blocks, unheard
from supertiny.compress.reshapers.elastic import Elastic, _depths
from supertiny.compress.reshapers.learned_masks import LearnedMasks, _chances
from supertiny.compress.reshapers.policy_gradient import PolicyGradient, _projected
from tests.tiny_models import (
    calibration,
    half_used,
    idle_blocks,
    knowing,
    logits_of,
    reshaped,
    share_alive,
    tiny,
    total_loss,
)

CHANNELS = 96


# --- policy_gradient ---


def test_policy_gradient_finds_the_dead_half_better_than_chance() -> None:
    model, dead, batches = half_used(1)
    method = PolicyGradient(channels=0.5, start="even", steps=100, masks=4, learning_rate=0.05)
    chances = method._learned(model, batches, {"channels": 16})["channels"]
    assert share_alive(chances, dead) > 0.65  # by chance .50, with a deviation of .09
    assert float(chances.sum()) == pytest.approx(16)


def test_policy_gradient_is_not_worse_than_where_it_starts_and_needs_no_graph() -> None:
    model, _, batches = half_used(1, 0.25)

    def loss_after(steps: int) -> float:
        settings = {"channels": 0.5, "steps": steps, "multiple": 8}
        return total_loss(reshaped("policy_gradient", copy.deepcopy(model), batches, **settings), batches)

    assert loss_after(60) <= loss_after(0) + 0.02
    seen: list[bool] = []
    model.model.norm.register_forward_hook(lambda part, given, result: seen.append(result.requires_grad))
    reshaped("policy_gradient", model, batches, channels=0.5, steps=2, multiple=8)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("count", [1, 3, 10, 19])
def test_chances_are_brought_to_the_budget(count: int) -> None:
    scores = torch.rand(5, 20, generator=torch.Generator().manual_seed(count), dtype=torch.float64) * 3 - 1
    chances = _projected(scores, count)
    assert torch.allclose(chances.sum(1), torch.full((5,), float(count), dtype=torch.float64), atol=1e-9)
    assert float(chances.min()) >= 0.01
    assert float(chances.max()) <= 0.99
    assert (chances.diff(dim=1) * scores.diff(dim=1) >= 0).all()  # order stays


# --- learned_masks ---


def test_learned_masks_reach_the_asked_share_and_shut_what_is_dead() -> None:
    model, dead, batches = half_used(2)
    before = [weight.detach().clone() for weight in model.model.layers[0].self_attn.parameters()]
    gates = LearnedMasks(channels=0.5, steps=150)._learned(model, batches, {"channels": 16})["channels"]
    assert (_chances(gates).mean(1) - 0.5).abs().max() < 0.05
    assert share_alive(gates, dead) > 0.7  # by chance .50, with a deviation of .06
    after = list(model.model.layers[0].self_attn.parameters())
    changed = [not torch.equal(left, right) for left, right in zip(before, after, strict=True)]
    assert changed == [True, False, True, False]  # queries and values took in the adapter, keys and outputs are frozen
    assert all(weight.requires_grad for weight in model.parameters())


def test_learned_masks_lose_less_than_chance() -> None:
    model, _, batches = half_used(2, 0.25)
    settings = {"channels": 0.5, "multiple": 8}
    small = reshaped("learned_masks", copy.deepcopy(model), batches, **settings, steps=100)
    floor = reshaped("narrow", copy.deepcopy(model), batches, **settings, by="random")
    assert total_loss(small, batches) < total_loss(floor, batches)


# --- elastic ---


def test_elastic_cuts_several_shapes_of_one_training() -> None:
    model, batches = knowing()
    shapes = [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5)]
    cut = Elastic(multiple=8, steps=30, learning_rate=3e-3).cut_out(copy.deepcopy(model), batches, shapes)
    assert [made.config.num_hidden_layers for made in cut] == [4, 3, 2]
    assert [made.config.intermediate_size for made in cut] == [96, 72, 48]
    untaught = Elastic(multiple=8, steps=0).cut_out(model, batches, shapes)
    losses, before = ([total_loss(made, batches) for made in some] for some in (cut, untaught))
    assert losses[0] < losses[2] + 0.05  # larger shapes are no worse
    assert losses[2] < before[2] - 0.3
    assert losses[1] < before[1]


def test_what_elastic_cuts_out_computes_what_it_trained_with_the_rest_switched_off() -> None:
    model, batches = tiny(), calibration()
    (small,) = Elastic(multiple=8, steps=2).cut_out(copy.deepcopy(model), batches, [(0.25, 0.5)])
    whole = Elastic(multiple=8, steps=2).cut_out(model, batches, [(0.25, 0.5), (0.0, 0.0)])[1]
    ups = [block.mlp.up_proj.weight for block in whole.model.layers]
    places = [next(i for i, up in enumerate(ups) if _rows_in(b.mlp.up_proj.weight, up)) for b in small.model.layers]
    kept = [_rows_in(b.mlp.up_proj.weight, ups[i]) for b, i in zip(small.model.layers, places, strict=True)]
    gates = torch.zeros(3, CHANNELS).scatter_(1, torch.tensor(kept), 1.0)
    with only_blocks(whole, places), gated(whole, {"channels": gates}):
        assert torch.allclose(logits_of(whole), logits_of(small), atol=1e-5)


def _rows_in(rows: torch.Tensor, whole: torch.Tensor) -> list[int]:
    """Places of rows in a larger matrix; empty where one is not there."""
    same = (rows[:, None] == whole[None]).all(-1)
    return same.float().argmax(1).tolist() if bool(same.any(1).all()) else []


def test_elastic_finds_the_blocks_that_do_nothing() -> None:
    batches = calibration()
    depths = _depths(idle_blocks(tiny(), [0, 2], batches), batches, 3, unheard)
    assert [len(kept) for kept in depths] == [4, 3, 2, 1]
    assert depths[2] == [1, 3]
