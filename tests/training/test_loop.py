"""The schedule, the clipping and the master weights of gradient descent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from supertiny.core.errors import UserError
from supertiny.training import loop
from supertiny.training.loop import Optimiser, Plan, learning_rate_at


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    plan = Plan(1e-3, passes=1, rows=1, warmup_share=0.1, final_share=0.05)
    rates = [learning_rate_at(step, 100, plan) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(1e-3)
    assert rates[55] == pytest.approx(1e-3 * (0.05 + 0.95 / 2))
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 5e-5 < rates[-1] < 5.4e-5
    assert learning_rate_at(0, 1, plan) == 1e-3


def test_small_updates_are_not_lost_in_bfloat16() -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimiser = Optimiser([weight], Plan(1e-4, passes=1, rows=1))
    for _ in range(100):  # one step alone is below half a unit of the last place of bfloat16 at 1
        weight.grad = torch.ones_like(weight)
        optimiser.step(1e-4)
    assert weight.tolist() == pytest.approx([0.99] * 4, abs=0.004)
    assert weight.dtype == torch.bfloat16


def test_the_gradient_is_clipped_and_its_own_norm_is_told() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    optimiser = Optimiser([weight], Plan(1.0, passes=1, rows=1, clip=1.0))
    seen = []
    step = optimiser.adam.step
    optimiser.adam.step = lambda: (seen.append(optimiser.masters[0].grad.norm().item()), step())  # type: ignore
    weight.grad = torch.full((4,), 50.0)
    assert optimiser.step(1.0) == pytest.approx(100.0)
    assert seen == [pytest.approx(1.0, rel=1e-4)]
    assert weight.grad is None


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimiser = Optimiser([weight], Plan(1.0, passes=1, rows=1))
    weight.grad = torch.tensor([torch.nan, 1.0])
    optimiser.step(1.0)
    assert weight.tolist() == [1.0, 1.0]


def test_a_full_disk_is_told_and_the_checkpoint_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimiser = Optimiser([weight], Plan(1.0, passes=1, rows=1))
    place = tmp_path / "checkpoint.safetensors"
    optimiser.save(place, 3)
    before = place.read_bytes()

    def full(*_: object) -> None:
        raise loop.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(loop, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        optimiser.save(place, 4)
    assert place.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert Optimiser([weight], Plan(1.0, passes=1, rows=1)).restore(place) == 3
