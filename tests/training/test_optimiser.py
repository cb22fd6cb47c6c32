"""AdamW on masters: what is small is not lost, what is large is clipped, and a checkpoint is whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from supertiny.core.errors import UserError
from supertiny.training import optimiser as room
from supertiny.training.optimiser import Optimiser, dithered

SETTINGS = {"rows": 4, "learning_rate": 1.0}


def a_weight(*values: float, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def test_small_updates_are_not_lost_in_bfloat16() -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimiser = Optimiser([weight], 1e-4)
    for _ in range(100):  # one step alone is below half a unit of the last place of bfloat16 at 1
        weight.grad = torch.ones_like(weight)
        optimiser.step(1e-4)
    assert weight.tolist() == pytest.approx([0.99] * 4, abs=0.008)
    assert weight.dtype == torch.bfloat16


def test_the_live_weights_move_on_average_as_far_as_their_masters_from_the_first_step_on() -> None:
    """Masters in the middle of their rounding intervals would leave all live weights where they are."""
    weight = torch.nn.Parameter(torch.full((20_000,), 1.5, dtype=torch.bfloat16))
    optimiser = Optimiser([weight], 1e-4)
    weight.grad = torch.ones_like(weight)
    optimiser.step(1e-4)
    moved = 1.5 - weight.double().mean().item()
    assert moved == pytest.approx(1e-4, rel=0.35)  # about 256 of 20,000 move by 2^-7
    assert 0 < (weight != 1.5).sum() < 1000


def test_dithered_masters_round_to_the_live_weights_and_fill_their_intervals() -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    weight = every[every.isfinite()]
    master = dithered(weight, 3)
    assert master.dtype == torch.float32
    assert torch.equal(master.bfloat16(), weight)
    assert torch.equal(master == 0, weight == 0)
    one = dithered(torch.ones(10_000, dtype=torch.bfloat16), 3)
    above, below = one[one > 1], one[one < 1]
    assert above.max() == pytest.approx(1 + 2**-8, rel=1e-5)
    assert below.min() == pytest.approx(1 - 2**-9, rel=1e-5)
    assert len(above) == pytest.approx(5000, abs=300)


def test_dithering_is_by_seed() -> None:
    weight = torch.ones(50, dtype=torch.bfloat16)
    assert torch.equal(dithered(weight, 1), dithered(weight, 1))
    assert not torch.equal(dithered(weight, 1), dithered(weight, 2))


def test_float32_weights_are_their_own_masters() -> None:
    weight = a_weight(1.0, 2.0)
    optimiser = Optimiser([weight], 0.1)
    assert optimiser.masters[0].data_ptr() == weight.data_ptr()
    weight.grad = torch.ones(2)
    optimiser.step(0.1)
    assert weight.tolist() == pytest.approx([0.9, 1.9])


def test_steps_are_those_of_the_stock_optimiser_with_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_AT_ONCE", 5)
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (2,), (3,), (9,)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    stock = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    optimiser = Optimiser(ours, 0.1, weight_decay=0.1, clip=1.0)
    assert [len(portion) for portion in optimiser._portions()] == [1, 2, 1]
    adam = torch.optim.AdamW(stock, lr=0.1, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(4):
        for left, right in zip(ours, stock, strict=True):
            left.grad = torch.randn(left.shape, generator=generator) * (10 if step % 2 else 0.01)
            right.grad = left.grad.clone()
        norm = float(torch.nn.utils.clip_grad_norm_(stock, 1.0))
        adam.step()
        assert optimiser.step(0.1) == pytest.approx(norm)
        for left, right in zip(ours, stock, strict=True):
            torch.testing.assert_close(left, right)
            assert left.grad is None


def test_the_gradient_is_clipped_and_its_own_norm_is_told() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    optimiser = Optimiser([weight], 1.0, clip=1.0)
    seen = []
    step: Any = optimiser.adam.step
    optimiser.adam.step = lambda: (seen.append(optimiser.masters[0].grad.norm().item()), step())  # type: ignore
    weight.grad = torch.full((4,), 50.0)
    assert optimiser.step(1.0) == pytest.approx(100.0)
    assert seen == [pytest.approx(1.0, rel=1e-4)]
    assert weight.grad is None


def test_the_norm_of_bfloat16_gradients_is_summed_in_float32() -> None:
    weight = torch.nn.Parameter(torch.zeros(100_000, dtype=torch.bfloat16))
    weight.grad = torch.full((100_000,), 0.01, dtype=torch.bfloat16)
    exact = weight.grad.double().norm().item()
    assert Optimiser([weight], 1.0).step(0.0) == pytest.approx(exact, rel=5e-4)  # bfloat16 would be 2e-3 off


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    weight = a_weight(1.0, 1.0)
    optimiser = Optimiser([weight], 1.0)
    weight.grad = torch.tensor([torch.nan, 1.0])
    optimiser.step(1.0)
    assert weight.tolist() == [1.0, 1.0]
    assert weight.grad is None


def test_nothing_that_may_be_changed_is_told() -> None:
    with pytest.raises(UserError, match="no weight"):
        Optimiser([torch.nn.Parameter(torch.ones(2), requires_grad=False)], 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimiser_goes_on_as_the_saved_one(dtype: torch.dtype, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint.safetensors"

    def stepped(optimiser: Optimiser, times: int) -> None:
        for number in range(times):
            optimiser.live[0].grad = torch.full((3,), 0.1 * (number + 1), dtype=dtype)
            optimiser.step(0.01)

    whole = Optimiser([a_weight(1.0, -2.0, 0.3, dtype=dtype)], 0.01, seed=1)
    stepped(whole, 2)
    whole.save(place, 2, SETTINGS)
    other = Optimiser([a_weight(5.0, 5.0, 5.0, dtype=dtype)], 0.01, seed=2)
    assert other.restore(place, SETTINGS) == 2
    assert torch.equal(other.live[0], whole.live[0])
    stepped(whole, 3)
    stepped(other, 3)
    assert torch.equal(other.masters[0], whole.masters[0])
    assert torch.equal(other.live[0], whole.live[0])


def test_a_checkpoint_of_other_settings_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint.safetensors"
    Optimiser([a_weight(1.0)], 1.0).save(place, 3, SETTINGS)
    with pytest.raises(UserError, match=r"rows 4 \(now 8\)") as told:
        Optimiser([a_weight(1.0)], 1.0).restore(place, {**SETTINGS, "rows": 8})
    assert "learning_rate" not in str(told.value)


def test_a_file_that_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint.safetensors"
    place.write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(UserError, match="no checkpoint of this training"):
        Optimiser([a_weight(1.0)], 1.0).restore(place, SETTINGS)
    Optimiser([a_weight(1.0, 2.0)], 1.0).save(place, 3, SETTINGS)
    with pytest.raises(UserError, match="no checkpoint of this training"):
        Optimiser([a_weight(1.0, 2.0, 3.0)], 1.0).restore(place, SETTINGS)


def test_a_full_disk_is_told_and_the_checkpoint_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimiser = Optimiser([a_weight(1.0, 1.0)], 1.0)
    place = tmp_path / "checkpoint.safetensors"
    optimiser.save(place, 3, SETTINGS)
    before = place.read_bytes()

    def full(*_: object) -> None:
        raise room.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(room, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        optimiser.save(place, 4, SETTINGS)
    assert place.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert Optimiser([a_weight(1.0, 1.0)], 1.0).restore(place, SETTINGS) == 3
