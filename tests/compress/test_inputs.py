"""What flows into a matrix: means over tokens, and what a change of the matrix does to its outputs."""

from __future__ import annotations

import pytest
import torch

from supertiny.compress.inputs import Gathering, Inputs
from supertiny.compress.inverse import inverse_factor
from supertiny.core.errors import UserError

STATES = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)


def test_they_are_means_over_tokens() -> None:
    inputs = Inputs.of(STATES)
    assert inputs.gram is not None
    torch.testing.assert_close(inputs.gram, STATES.T @ STATES / 50)
    torch.testing.assert_close(inputs.second, STATES.square().mean(dim=0))
    torch.testing.assert_close(inputs.absolute, STATES.abs().mean(dim=0))
    assert (inputs.count, inputs.width) == (50, 12)
    without = Inputs.of(STATES, gram=False)
    assert without.gram is None
    torch.testing.assert_close(without.second, inputs.second)


def test_gathered_in_parts_is_gathered_at_once() -> None:
    gathering = Gathering(12)
    for part in (STATES[:7].reshape(1, 7, 12), STATES[7:30].bfloat16().float(), STATES[30:]):
        gathering.add(part)
    whole = Inputs.of(torch.cat([STATES[:7], STATES[7:30].bfloat16().float(), STATES[30:]]))
    torch.testing.assert_close(gathering.inputs().gram, whole.gram)
    assert gathering.inputs().count == 50


@pytest.mark.parametrize("gram", [True, False])
def test_output_error_is_what_the_outputs_miss(gram: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    before, after = torch.randn(5, 12, generator=draw), torch.randn(5, 12, generator=draw)
    states = STATES if gram else torch.diag(torch.arange(1.0, 13))  # one input at a time: nothing is correlated
    missed = (states @ before.T - states @ after.T).square().mean(dim=0)
    torch.testing.assert_close(Inputs.of(states, gram).output_error(before, after), missed)


def test_the_factor_is_that_of_the_inverse() -> None:
    for states in (STATES, STATES[:3], STATES * (torch.arange(12) % 3 > 0)):  # whole, too few tokens, dead columns
        damped = Inputs.of(states).damped(0.01)
        factor = inverse_factor(damped).double()
        assert torch.equal(factor, factor.triu())
        torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(12, dtype=torch.float64), atol=1e-4, rtol=0)
    dead = Inputs.of(torch.zeros(4, 3)).damped(0.01)
    assert torch.equal(dead, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("ordered", [False, True])
def test_matrices_that_share_inputs_share_the_factor(ordered: bool) -> None:
    inputs = Inputs.of(STATES)
    factor, order = inputs.factor(0.01, ordered), inputs.order(ordered)
    assert inputs.factor(0.01, ordered) is inputs.of_pruned().factor(0.01, ordered) is factor
    assert torch.equal(factor, inverse_factor(inputs.damped(0.01)[order][:, order]))
    assert not torch.equal(inputs.factor(0.1, ordered), factor)
    assert not torch.equal(inputs.factor(0.01, not ordered), factor)
    falling = inputs.second[order].diff() <= 0
    assert bool(falling.all()) is ordered
    assert sorted(order.tolist()) == list(range(12))
    torch.testing.assert_close(inputs.gram, Inputs.of(STATES).gram, rtol=0, atol=0)  # damping left it alone


def test_the_factor_of_many_columns_is_made_in_halves_and_the_same() -> None:
    width = 300
    states = torch.randn(400, width, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.1, 3, width)
    damped = Inputs.of(states).damped(0.01)
    factor = inverse_factor(damped).double()
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(width, dtype=torch.float64), atol=1e-4, rtol=0)


def test_what_cannot_be_used_is_told() -> None:
    with pytest.raises(UserError, match="no calibration token"):
        Gathering(4).inputs()
    with pytest.raises(UserError, match="not finite"):
        Inputs.of(torch.tensor([[1.0, torch.inf]]))
    with pytest.raises(UserError, match="gram"):
        Inputs.of(STATES, gram=False).damped(0.1)
    with pytest.raises(UserError, match="damping"):
        inverse_factor(-torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="12 wide"):
        Inputs.of(STATES).check(torch.zeros(3, 4))
