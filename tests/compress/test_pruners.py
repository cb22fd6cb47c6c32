"""The pruners' papers in small."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from supertiny.compress import changing
from supertiny.compress.inputs import Inputs
from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.training.lessons import Batch


def correlated(seed: int = 1, width: int = 128) -> Inputs:
    draw = torch.Generator().manual_seed(seed)
    mix = 2 * torch.randn(width, width, generator=draw) / width**0.5 + torch.eye(width)
    sizes = torch.logspace(-1, 1, width)[torch.randperm(width, generator=draw)]
    return Inputs.of(torch.randn(1000, width, generator=draw) @ mix * sizes)


def matrix(seed: int = 0, height: int = 48, width: int = 128) -> torch.Tensor:
    return torch.randn(height, width, generator=torch.Generator().manual_seed(seed))


def lost(name: str, sparsity: float, inputs: Inputs, pattern: str = "") -> float:
    small = build("pruners", {"method": name, "pattern": pattern}).prune(matrix(), inputs, sparsity)
    return float(inputs.output_error(matrix(), small).sum())


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.5, ""), (0.7, ""), (0.5, "2:4")])
def test_those_that_look_at_inputs_lose_less_and_those_that_make_up_least(sparsity: float, pattern: str) -> None:
    seen = correlated()
    magnitude, wanda, sparsegpt = (lost(n, sparsity, seen, pattern) for n in ("magnitude", "wanda", "sparsegpt"))
    assert wanda < 0.5 * magnitude
    assert sparsegpt < 0.95 * wanda


def test_wanda_compares_within_a_row() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.1], [10.0, 20.0, -30.0, 40.0]])
    inputs = Inputs.of(torch.diag(torch.tensor([8.0, 1.0, 1.0, 1000.0])), gram=False)
    small = build("pruners", "wanda").prune(weight, inputs, 0.5)
    assert torch.equal(small, torch.tensor([[1.0, 0.0, 0.0, 0.1], [10.0, 0.0, 0.0, 40.0]]))


def test_sparsegpt_of_one_weight_is_the_optimal_brain_surgeon() -> None:
    """Without one weight, the others move to the least squares for what is left."""
    draw = torch.Generator().manual_seed(4)
    states = torch.randn(200, 6, generator=draw) @ torch.randn(6, 6, generator=draw)
    weight = torch.tensor([[1e-4, 1.0, -1.0, 2.0, 0.5, -0.7]])
    weight[0, 0] = 0.05
    small = build("pruners", {"method": "sparsegpt", "damping": 1e-7}).prune(weight, Inputs.of(states), 1 / 6)
    gone = int((small == 0).nonzero()[0, 1])
    stays = [place for place in range(6) if place > gone]  # only columns still to come make up for it
    left = states @ weight[0] - states[:, :gone] @ weight[0, :gone]
    best = torch.linalg.lstsq(states[:, stays], left[:, None]).solution[:, 0]
    torch.testing.assert_close(small[0, stays], best, atol=1e-3, rtol=1e-3)


def test_ecoflap_gives_what_matters_more_more_weights() -> None:
    method = build("pruners", "ecoflap")
    draw = torch.Generator().manual_seed(0)
    matrices = {name: torch.randn(10, 10, generator=draw) for name in ("dead", "weak", "strong")}
    weights = {"dead": 0.0, "weak": 0.1, "strong": 5.0}
    before = {name: m.clone() for name, m in matrices.items()}

    def loss() -> float:
        return float(sum(weights[name] * m.sum() for name, m in matrices.items()))

    scores = method.scores(matrices, loss, seed=3)
    assert scores == method.scores(matrices, loss, seed=3)
    assert scores["dead"] < scores["weak"] < scores["strong"]
    assert all(torch.equal(matrices[name], m) for name, m in before.items())
    shares = method.sparsities(scores, dict.fromkeys(matrices, 100), 0.5)
    assert shares["dead"] >= shares["weak"] > shares["strong"]


@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.5, 0.777, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_ecoflaps_totals_are_exact_and_within_their_limits(sparsity: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    sizes = {f"m{i}": int(torch.randint(50, 5000, (1,), generator=draw)) for i in range(12)}
    scores = {name: float(torch.rand(1, generator=draw).pow(6)) for name in sizes}
    shares = build("pruners", "ecoflap").sparsities(scores, sizes, sparsity)
    zeros = {name: round(shares[name] * size) for name, size in sizes.items()}
    assert sum(zeros.values()) == round(sparsity * sum(sizes.values()))
    assert all(0 <= zeros[name] < 0.8 * size + 1 for name, size in sizes.items())
    if sparsity == 0.5:
        assert len(set(shares.values())) > 2


def test_ecoflap_refuses_what_cannot_be_shared_out() -> None:
    method = build("pruners", {"method": "ecoflap", "most": 0.6})
    with pytest.raises(UserError, match="`most` is 0.6"):
        method.sparsities({"a": 1.0}, {"a": 10}, 0.7)
    with pytest.raises(UserError, match="not finite"):
        method.sparsities({"a": float("nan")}, {"a": 10}, 0.5)
    assert method.sparsities({"a": 0.0, "b": 0.0}, {"a": 10, "b": 20}, 0.5) == {"a": 0.5, "b": 0.5}
    fixed = build("pruners", {"method": "ecoflap", "pattern": "2:4"})
    assert fixed.sparsities({"a": 1.0, "b": 9.0}, {"a": 12, "b": 12}, 0.5) == {"a": 0.5, "b": 0.5}


def test_pst_keeps_rows_and_columns_whose_loss_a_gradient_fears_for() -> None:
    weight, inputs = matrix(), correlated()
    gradient = torch.zeros_like(weight)
    gradient[7], gradient[:, 30] = -weight[7].sign(), -weight[:, 30].sign()
    steered = build("pruners", {"method": "pst", "lines": 3.0}).prune(
        weight, dataclasses.replace(inputs, gradient=gradient), 0.5
    )
    assert (steered[7] == 0).float().mean() < 0.1
    assert (steered[:, 30] == 0).float().mean() < 0.2
    assert float((steered == 0).float().mean()) == 0.5


def test_pst_learns_mask_and_weights_together_with_few_numbers() -> None:
    torch.manual_seed(0)
    target, states = matrix(2), torch.randn(400, 128) * torch.logspace(-1, 1, 128)
    losses = {}
    for learned in (0.0, 1.0):  # without scores of its own it is magnitude with a LoRA
        layer, method = (
            torch.nn.Linear(128, 48, bias=False),
            build("pruners", {"method": "pst", "rank": 2, "low": learned, "lines": learned}),
        )
        layer.weight.data.copy_(target)
        method.attach(layer, 0, 0.5)
        learning = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        assert sum(p.numel() for p in learning) == 2 * 2 * (128 + 48) + 128 + 48
        losses[learned] = fit(layer, learning, states, states @ target.T)
        answers = layer(states).detach()
        method.bake(layer)
        assert torch.equal(layer(states), answers)
        assert int((layer.weight == 0).sum()) == 48 * 128 // 2
    assert losses[1.0] < 0.9 * losses[0.0]


def fit(layer: Any, learning: list[Any], states: torch.Tensor, wanted: torch.Tensor) -> float:
    adam = torch.optim.Adam(learning, 0.02)
    for _ in range(150):
        loss = (layer(states) - wanted).square().mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return loss.item()


def test_ecoflap_asks_the_loss_of_rows_of_middle_length() -> None:
    def batch(length: int, rows: int) -> Batch:
        ids = torch.zeros(rows, length, dtype=torch.long)
        return Batch(ids, ids, ids.bool(), ids[:0, 0])

    lengths = range(1, 6)
    assert [one.ids.shape[1] for one in changing._middle([batch(n, 32) for n in lengths])] == [3]
    assert [one.ids.shape[1] for one in changing._middle([batch(n, 10) for n in lengths])] == [2, 3, 4]
    assert [one.ids.shape[1] for one in changing._middle([batch(n, 1) for n in lengths])] == [*lengths]
