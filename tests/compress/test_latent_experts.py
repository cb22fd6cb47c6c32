"""Experts that share a factor: the best of its rank, trained as factors, saved as a stock mixture."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from supertiny.compress.reshapers._shared_factor import factors
from supertiny.core.errors import UserError
from tests.tiny_models import (
    EXPERTS,
    MIXTURES,
    calibration,
    distinct_weights,
    logits_of,
    mixture,
    reshaped,
    taught,
    tiny,
    total_loss,
)

WIDTH, CHANNELS, BLOCKS = 32, 24, 2
OLD = EXPERTS * 2 * CHANNELS * WIDTH


def experts_of(model: Any) -> list[Any]:
    return [block.mlp.experts for block in model.base_model.layers]


def alike(noise: float, generator: torch.Generator) -> torch.Tensor:
    base = torch.randn(1, 2 * CHANNELS, WIDTH, generator=generator)
    return base + noise * torch.randn(EXPERTS, 2 * CHANNELS, WIDTH, generator=generator)


def moment(generator: torch.Generator) -> torch.Tensor:
    states = torch.randn(300, WIDTH, generator=generator) * torch.linspace(0.1, 3, WIDTH)
    return states.T @ states


def lost(weights: torch.Tensor, own: torch.Tensor, shared: torch.Tensor, seen: torch.Tensor) -> float:
    """Squared error of the experts' outputs, summed over the inputs of that second moment."""
    groups = own.unflatten(0, (len(shared), -1))
    apart = (weights - torch.einsum("gerk,gkw->gerw", groups, shared).flatten(0, 1)).double()
    return float(torch.einsum("erx,xy,ery->", apart, seen.double(), apart))


def test_what_is_lost_is_the_tail_of_the_eigenvalues() -> None:
    generator = torch.Generator().manual_seed(1)
    weights, seen = alike(1.0, generator), moment(generator)
    root = torch.linalg.cholesky(seen.double())
    outputs = sum(((one.double() @ root).T @ (one.double() @ root)) for one in weights)
    eigenvalues = torch.linalg.eigvalsh(outputs)  # ascending
    for kept in (4, 16, 31):
        found = lost(weights, *factors(weights, seen, kept, 0), seen)
        assert found == pytest.approx(float(eigenvalues[: WIDTH - kept].sum()), rel=1e-3)
    assert lost(weights, *factors(weights, seen, WIDTH, 0), seen) < 1e-6 * float(eigenvalues.sum())


def test_a_random_factor_of_the_same_width_loses_more_and_so_does_one_that_does_not_look_at_the_inputs() -> None:
    generator = torch.Generator().manual_seed(2)
    weights, seen = alike(1.0, generator), moment(generator)
    best = lost(weights, *factors(weights, seen, 12, 0), seen)
    assert best < 0.7 * lost(weights, *factors(weights, torch.eye(WIDTH), 12, 0), seen)
    basis = torch.linalg.qr(torch.randn(WIDTH, 12, generator=generator)).Q
    assert best < 0.7 * lost(weights, weights @ basis, basis.T[None], seen)


def test_of_alike_experts_a_shared_factor_keeps_more_than_one_of_each_at_equal_size() -> None:
    generator = torch.Generator().manual_seed(4)
    weights, seen = alike(0.1, generator), moment(generator)
    shared = factors(weights, seen, 16, 0)
    budget = sum(part.numel() for part in shared)
    each = budget // (EXPERTS * (2 * CHANNELS + WIDTH))
    alone = factors(weights, seen, each, 1)
    assert budget * 0.9 < sum(part.numel() for part in alone) <= budget
    assert lost(weights, *shared, seen) < 0.5 * lost(weights, *alone, seen)


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_stock_mixture_is_saved_that_answers_the_same(kind: str, tmp_path: Path) -> None:
    model = mixture(kind)
    before, whole = distinct_weights(model), logits_of(model)
    reshaped("latent_experts", model, calibration(), share=0.5)
    kept = WIDTH // 2
    assert before - distinct_weights(model) == BLOCKS * (OLD - kept * (EXPERTS * 2 * CHANNELS + WIDTH))
    assert not torch.allclose(logits_of(model), whole, atol=1e-3)
    model.save_pretrained(tmp_path)
    opened, told = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits_of(opened.eval()), logits_of(model), atol=1e-5, rtol=1e-4)
    assert distinct_weights(opened) == before  # the file holds the products
    for experts in experts_of(opened):
        assert torch.linalg.matrix_rank(experts.gate_up_proj.flatten(0, 1), rtol=1e-4) == kept


def test_factors_look_at_all_tokens_but_padding() -> None:
    model, batches, seen = mixture(), calibration(), list[torch.Tensor]()
    assert any(not bool(batch.mask.all()) for batch in batches)
    block = model.base_model.layers[0].mlp
    handle = block.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.inference_mode():
        for batch in batches:
            model.base_model(input_ids=batch.ids, attention_mask=batch.mask)
    handle.remove()
    rows = torch.cat([states[batch.mask.bool()] for states, batch in zip(seen, batches, strict=True)])
    own, shared = factors(block.experts.gate_up_proj.detach(), rows.T @ rows, WIDTH // 2, 0)
    expected = torch.einsum("erk,kw->erw", own, shared[0])
    reshaped("latent_experts", model, batches)
    torch.testing.assert_close(block.experts.gate_up_proj.detach(), expected, atol=1e-4, rtol=1e-3)


def test_factors_are_of_the_same_size_however_many_tokens_were_seen() -> None:
    generator = torch.Generator().manual_seed(6)
    weights, seen = alike(1.0, generator), moment(generator)
    own, shared = factors(weights, seen, 12, 2)
    for matrix in shared:
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(12), atol=1e-4, rtol=0)
    more_own, more_shared = factors(weights, 1e4 * seen, 12, 2)
    torch.testing.assert_close(more_shared.abs(), shared.abs(), atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(more_own.abs(), own.abs(), atol=1e-2, rtol=1e-2)


def test_groups_share_a_factor_each() -> None:
    model = reshaped("latent_experts", mixture(), calibration(), share=0.75, group=2)
    for experts in experts_of(model):
        assert experts.parametrizations.gate_up_proj[0].shared.shape == (2, 8, WIDTH)
        first, second = experts.gate_up_proj.detach().split(2)
        assert torch.linalg.matrix_rank(first.flatten(0, 1), rtol=1e-4) == 8
        assert torch.linalg.matrix_rank(torch.cat([first, second]).flatten(0, 1), rtol=1e-4) == 16


def test_training_goes_through_thefactors() -> None:
    batches = calibration()
    model = reshaped("latent_experts", taught(mixture(), batches), batches, share=0.75)
    cut = total_loss(model, batches)
    shared = [experts.parametrizations.gate_up_proj[0].shared.detach().clone() for experts in experts_of(model)]
    taught(model, batches, 10)
    assert total_loss(model, batches) < cut
    for experts, before in zip(experts_of(model), shared, strict=True):
        assert not torch.equal(experts.parametrizations.gate_up_proj[0].shared, before)
        assert torch.linalg.matrix_rank(experts.gate_up_proj.detach().flatten(0, 1), rtol=1e-4) == 8


def test_a_copy_in_bfloat16_is_saved_as_a_pupil_saves(tmp_path: Path) -> None:
    model = reshaped("latent_experts", mixture(), calibration())
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits_of(opened), logits_of(model), atol=0.2, rtol=0.1)


@pytest.mark.parametrize(
    ("made", "settings", "words"),
    [
        (tiny, {}, "does not know how LlamaForCausalLM is built (it knows mixtral, olmoe, qwen2_moe, qwen3_moe)"),
        (mixture, {"group": 3}, "group 3 does not divide 4 experts"),
        (mixture, {"share": 0.05}, "a share above 0.14 saves something"),
        (lambda: mixture(mlp_only_layers=[0, 1]), {}, "no block of this student has experts"),
        (lambda: reshaped("latent_experts", mixture(), calibration()), {}, "latent already"),
    ],
)
def test_what_cannot_be_done_is_said(made: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        reshaped("latent_experts", made(), calibration(), **settings)
    assert words in str(error.value)


def test_the_share_that_is_named_does_save_something() -> None:
    whole = mixture()
    before = distinct_weights(whole)
    assert distinct_weights(reshaped("latent_experts", whole, calibration(), share=0.17)) < before


def test_blocks_without_experts_stay_as_they_are() -> None:
    model = mixture(mlp_only_layers=[0])
    plain = model.base_model.layers[0].mlp.up_proj.weight.clone()
    reshaped("latent_experts", model, calibration(), share=0.75)
    assert torch.equal(model.base_model.layers[0].mlp.up_proj.weight, plain)
    left = model.base_model.layers[1].mlp.experts.gate_up_proj.detach()
    assert torch.linalg.matrix_rank(left.flatten(0, 1), rtol=1e-4) == 8
