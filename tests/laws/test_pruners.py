"""What every pruner obeys: exactly the asked zeros, the matrix untouched, no worse than chance on correlated inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from supertiny.compress.inputs import Inputs
from supertiny.core.errors import UserError
from supertiny.core.methods import build, cards

PRUNERS = sorted(cards("pruners"))
BY_ROW = ("wanda", "ecoflap")
COMPENSATING = ("sparsegpt",)


def matrix(height: int = 21, width: int = 144, seed: int = 0) -> torch.Tensor:
    return torch.randn(height, width, generator=torch.Generator().manual_seed(seed))


def inputs(width: int = 144, tokens: int = 500, seed: int = 1) -> Inputs:
    """Correlated, and of different sizes."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=draw) / width**0.5
    sizes = torch.rand(width, generator=draw) * 3
    return Inputs.of((torch.randn(tokens, width, generator=draw) @ mix) * sizes)


def pruned(name: str, sparsity: float, weight: torch.Tensor | None = None, **settings: Any) -> torch.Tensor:
    pruner = build("pruners", {"method": name, **settings})
    out: torch.Tensor = pruner.prune(matrix() if weight is None else weight, inputs(), sparsity)
    return out


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.777, 0.99])
def test_exactly_the_asked_share_is_zero(name: str, sparsity: float) -> None:
    zeros = pruned(name, sparsity) == 0
    assert int(zeros.sum()) == round(sparsity * zeros.numel())
    if name in BY_ROW:
        rows = zeros.sum(dim=1)
        assert rows.max() - rows.min() <= 1
        assert (rows - sparsity * 144).abs().max() < 1


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("4:8", 0.5), ("1:3", 2 / 3)])
def test_of_each_few_neighbours_so_many_stay(name: str, pattern: str, sparsity: float) -> None:
    stay, of = (int(part) for part in pattern.split(":"))
    runs = (pruned(name, sparsity, pattern=pattern) != 0).reshape(-1, of).sum(dim=1)
    assert (runs == stay).all()


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrix_stays_as_it_was(name: str, dtype: torch.dtype) -> None:
    weight = matrix().to(dtype)
    before = weight.clone()
    small = pruned(name, 0.5, weight)
    assert torch.equal(weight, before)
    assert small.dtype == dtype
    assert small.shape == weight.shape
    assert small.data_ptr() != weight.data_ptr()
    assert not pruned(name, 0.5, torch.nn.Parameter(weight)).requires_grad
    assert torch.equal(small, pruned(name, 0.5, weight))
    if name not in COMPENSATING:
        assert torch.equal(small[small != 0], weight[small != 0])
    assert torch.allclose(pruned(name, 0.0, weight).float(), weight.float(), rtol=1e-3)


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize(("sparsity", "pattern"), [(0.3, ""), (0.5, ""), (0.8, ""), (0.5, "2:4")])
def test_no_worse_than_chance(name: str, sparsity: float, pattern: str) -> None:
    for seed in range(3):
        weight, seen = matrix(seed=seed), inputs(seed=seed + 10)
        small = build("pruners", {"method": name, "pattern": pattern}).prune(weight, seen, sparsity)
        draw = torch.Generator().manual_seed(seed)
        chance = torch.rand(weight.shape, generator=draw)
        random = build("pruners", {"method": "magnitude", "pattern": pattern}).prune(chance, None, sparsity)
        lost = seen.output_error(weight, small).sum()
        assert lost < 0.9 * seen.output_error(weight, weight * (random != 0)).sum()


@pytest.mark.parametrize("name", PRUNERS)
def test_zeros_that_are_there_go_first(name: str) -> None:
    weight = matrix()
    weight[:, 100:] = 0
    zeros = pruned(name, 0.5, weight) == 0
    assert int(zeros.sum()) == round(0.5 * zeros.numel())
    # The learned form of pst has no place for single weights, and what makes up for others may wake zeros up.
    assert zeros[:, 100:].all() or name in ("pst", *COMPENSATING)


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("pattern", ["2:1", "0:4", "4", "a:b", "2:2", "2:4:8", "-1:4"])
def test_what_is_no_pattern_is_told(name: str, pattern: str) -> None:
    with pytest.raises(UserError, match="pattern must be"):
        build("pruners", {"method": name, "pattern": pattern})


@pytest.mark.parametrize("name", PRUNERS)
def test_what_cannot_be_pruned_is_told(name: str) -> None:
    with pytest.raises(UserError, match="sparsity of 0.5, and 0.6"):
        pruned(name, 0.6, pattern="2:4")
    with pytest.raises(UserError, match="runs of 5"):
        pruned(name, 0.6, pattern="2:5")
    for wrong in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="sparsity"):
            pruned(name, wrong)
    with pytest.raises(UserError, match="not finite"):
        pruned(name, 0.5, matrix().fill_(torch.inf))
    with pytest.raises(UserError, match="unquantized"):
        pruned(name, 0.5, torch.zeros(21, 144, dtype=torch.int8))
    pruner = build("pruners", name)
    if "calibration" in getattr(pruner, "needs", ()):
        with pytest.raises(UserError, match="needs calibration rows"):
            pruner.prune(matrix(), None, 0.5)
        with pytest.raises(ValueError, match="wide"):
            pruner.prune(matrix(), inputs(36), 0.5)
