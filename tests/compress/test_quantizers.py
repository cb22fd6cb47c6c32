"""The quantizers' papers in small, and the reference numbers that others measured on Gaussian weights."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import gguf
import pytest
import torch

from supertiny.compress.exporters import _gguf_grid
from supertiny.compress.inputs import Inputs
from supertiny.compress.packed import LEVELS, Packed, unpack_trits
from supertiny.compress.quantizers import _grids
from supertiny.compress.quantizers._grids import Grid, LlamaType, Zero
from supertiny.core.methods import build
from supertiny.training.grid import round_q4_0

GAUSSIAN = torch.randn(384, 576, generator=torch.Generator().manual_seed(0))
LLAMA: tuple[LlamaType, ...] = ("q4_0", "q4_1", "q5_0", "q8_0")


def quantized(block: Any, weight: torch.Tensor, inputs: Inputs | None = None) -> Packed:
    packed: Packed = build("quantizers", block).quantize(weight, inputs)
    return packed


def signal_to_noise(block: Any, weight: torch.Tensor = GAUSSIAN) -> float:
    """In dB."""
    lost = (quantized(block, weight).restored() - weight).square().sum()
    return float(10 * torch.log10(weight.square().sum() / lost))


def crowded(width: int, factors: int = 24) -> Inputs:
    """A few factors move all inputs, and each moves a little by itself."""
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(1500, factors, generator=draw) @ torch.randn(factors, width, generator=draw)
    return Inputs.of(states + 0.5 * torch.randn(1500, width, generator=draw))


def correlated(width: int, tokens: int = 1500, seed: int = 1) -> Inputs:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=draw) / width**0.5 + torch.eye(width)
    return Inputs.of(torch.randn(tokens, width, generator=draw) @ mix)


@pytest.mark.parametrize(
    ("block", "reference", "slack"),
    [
        ({"method": "rtn", "bits": 2, "zero": "offset"}, 6.94, 0.05),
        ({"method": "rtn", "bits": 3, "zero": "offset"}, 14.31, 0.05),
        ({"method": "rtn", "bits": 4, "zero": "offset"}, 20.95, 0.05),
        ("trit_planes", 15.77, 0.06),
        ("ternary_aware", 5.87, 0.03),
        ({"method": "bit_planes", "bits": 2}, 9.57, 0.06),
    ],
)
def test_reference_numbers_on_gaussian_weights(block: Any, reference: float, slack: float) -> None:
    assert signal_to_noise(block) == pytest.approx(reference, abs=slack)


@pytest.mark.parametrize(("bits", "reference"), [(3, 14.80), (4, 20.00)])
def test_bit_planes_from_two_starts_beat_the_greedy_one(bits: int, reference: float) -> None:
    assert signal_to_noise({"method": "bit_planes", "bits": bits}) > reference + 0.2
    # At 4 bits the greedy start alone was below plain rounding.
    plain = signal_to_noise({"method": "rtn", "bits": bits, "zero": "offset"})
    assert signal_to_noise({"method": "bit_planes", "bits": bits}) > plain


def test_trit_planes_stand_between_three_and_four_bits_also_with_heavy_tails() -> None:
    tails = torch.distributions.StudentT(4.0)
    torch.manual_seed(0)
    for weight in (GAUSSIAN, tails.sample((384, 576))):
        three, four = (signal_to_noise({"method": "rtn", "bits": b, "zero": "offset"}, weight) for b in (3, 4))
        assert three + 1 < signal_to_noise("trit_planes", weight) < four
        assert signal_to_noise("trit_planes", weight) > signal_to_noise("ternary_aware", weight) + 5


def test_an_even_grid_is_a_sum_of_signs() -> None:
    """w = s (q - z) has scales s 2^i / 2 of its planes, and an offset: exact, so planes hold a symmetric grid."""
    steps = torch.randint(0, 8, (40, 64), generator=torch.Generator().manual_seed(2)) * 2 - 7
    weight = steps * torch.rand(40, 1, generator=torch.Generator().manual_seed(3)).half().float()
    packed = quantized({"method": "bit_planes", "bits": 3}, weight)
    assert (packed.restored() - weight).abs().max() < 2e-3 * weight.abs().max()


def test_nf4_has_the_quantiles_of_the_normal_distribution() -> None:
    normal, edge = NormalDist(), 0.9677083
    below = [-normal.inv_cdf(edge + (0.5 - edge) * i / 7) for i in range(7)]
    above = [normal.inv_cdf(edge + (0.5 - edge) * i / 8) for i in range(8)]
    levels = sorted([*below, 0.0, *above])
    top = max(abs(level) for level in levels)
    expected = sorted(-level / top for level in levels)
    table = LEVELS["nf4"]
    assert [len([x for x in table if x < 0]), len([x for x in table if x > 0])] == [7, 8]
    flipped = sorted(-x for x in expected)
    assert list(table) == pytest.approx(flipped, abs=2e-4)


def test_nf4_beats_even_levels_on_gaussian_weights() -> None:
    assert signal_to_noise("nf4") > signal_to_noise({"method": "rtn", "bits": 4, "zero": "middle"})


def test_hqq_has_less_error_below_the_norm_of_two_than_rtn() -> None:
    torch.manual_seed(0)
    weight = torch.distributions.StudentT(3.0).sample((64, 576))
    for bits in (2, 3, 4):
        ways = ({"method": "hqq", "bits": bits}, {"method": "rtn", "bits": bits, "zero": "offset"})
        fitted, plain = ((quantized(way, weight).restored() - weight).abs().pow(0.7).sum() for way in ways)
        assert fitted < 0.98 * plain


@pytest.mark.parametrize("type", LLAMA)
def test_plain_rounding_on_its_grids_is_llama_cpps(type: LlamaType) -> None:
    weight, grid = GAUSSIAN[:40] * 0.03, Grid.of_type(type)
    kind = gguf.GGMLQuantizationType[type.upper()]
    packed = grid.packed(*grid.plain(grid.groups(weight)), weight)
    assert torch.equal(packed.tensors["blocks"], torch.from_numpy(gguf.quants.quantize(weight.numpy(), kind)))
    if type == "q4_0":
        assert torch.allclose(packed.restored(), round_q4_0(weight), atol=1e-7)


@pytest.mark.parametrize("type", LLAMA)
def test_gptq_on_llama_cpps_grids_loses_nothing_when_it_is_packed(type: LlamaType) -> None:
    weight, seen = GAUSSIAN[:64, :128] * 0.03, correlated(128)
    restored = quantized({"method": "gptq", "grid": type}, weight, seen).restored()
    kind = gguf.GGMLQuantizationType[type.upper()]
    stored = gguf.quants.dequantize(_gguf_grid.packed(restored.numpy(), type), kind)
    assert torch.equal(torch.from_numpy(stored.copy()), restored)
    plain = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
    simple = seen.output_error(weight, torch.from_numpy(plain.copy())).sum()
    assert seen.output_error(weight, restored).sum() < 0.7 * simple


def test_gptq_is_the_search_alone_where_inputs_are_not_correlated() -> None:
    """With a gram matrix that is a multiple of one, no column has anything to make up for."""
    weight, grid = GAUSSIAN[:16, :128], Grid(4, 32, "middle")
    alone = Inputs(torch.ones(128), torch.ones(128), 128, torch.eye(128))
    groups = grid.groups(weight)
    points = grid.fitted(groups)
    expected = grid.values(grid.codes(groups, points), points).reshape(weight.shape)
    for ordered in (False, True):
        block = {"method": "gptq", "group": 32, "ordered": ordered}
        torch.testing.assert_close(quantized(block, weight, alone).restored(), expected)


@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_makes_up_for_what_was_lost(ordered: bool) -> None:
    weight, seen = GAUSSIAN[:48, :192], correlated(192)
    grid = Grid(3, 64, "middle")
    groups = grid.groups(weight)
    points = grid.fitted(groups)
    searched = grid.values(grid.codes(groups, points), points).reshape(weight.shape)
    restored = quantized({"method": "gptq", "bits": 3, "ordered": ordered}, weight, seen).restored()
    assert seen.output_error(weight, restored).sum() < 0.8 * seen.output_error(weight, searched).sum()


@pytest.mark.parametrize("pruner", ["magnitude", "wanda", {"method": "wanda", "pattern": "2:4"}], ids=str)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    "way",
    [{"bits": 4}, {"bits": 3, "zero": "integer"}, {"bits": 2, "group": 32}, {"grid": "q4_0"}, {"grid": "q8_0"}],
    ids=str,
)
def test_gptq_keeps_the_zeros_of_a_pruned_matrix(pruner: Any, way: dict[str, Any], ordered: bool) -> None:
    """And still loses less than plain rounding, which keeps them by itself."""
    seen = crowded(192)
    pruned = build("pruners", pruner).prune(GAUSSIAN[:48, :192] * 0.03, seen, 0.5)
    gone = pruned == 0
    restored = quantized({"method": "gptq", "ordered": ordered, **way}, pruned, seen.of_pruned()).restored()
    assert (restored[gone] == 0).all()
    bits, group = {"q4_0": (4, 32), "q8_0": (8, 32)}.get(way.get("grid", ""), (way.get("bits"), way.get("group", 64)))
    plain = quantized({"method": "rtn", "bits": bits, "group": group, "zero": way.get("zero", "middle")}, pruned)
    assert (plain.restored()[gone] == 0).all()
    simple = seen.output_error(pruned, plain.restored()).sum()
    assert seen.output_error(pruned, restored).sum() < 0.6 * simple


def test_zeros_that_gptq_keeps_cost_less_when_what_follows_knows_of_them() -> None:
    """The same mask laid over the result of a rounding that did not know it."""
    seen = crowded(192)
    pruned = build("pruners", "magnitude").prune(GAUSSIAN[:48, :192], seen, 0.5)
    joint, apart = (quantized({"method": "gptq", "bits": 3}, pruned, s).restored() for s in (seen.of_pruned(), seen))
    assert (apart[pruned == 0] != 0).any()
    masked = seen.output_error(pruned, apart * (pruned != 0)).sum()
    assert seen.output_error(pruned, joint).sum() < 0.9 * masked


@pytest.mark.parametrize("bits", [3, 4])
def test_zeros_that_no_pruner_made_are_weights_as_others_to_gptq(bits: int) -> None:
    """Training on q4_0's grid leaves many: where they must stay, the rest has more to make up for."""
    weight, seen = round_q4_0(GAUSSIAN[:48, :192]), crowded(192)
    assert 0.05 < (weight == 0).double().mean() < 0.2
    free, held = (quantized({"method": "gptq", "bits": bits}, weight, s).restored() for s in (seen, seen.of_pruned()))
    assert (free[weight == 0] != 0).any()
    assert seen.output_error(weight, free).sum() < 0.9 * seen.output_error(weight, held).sum()


def test_an_offset_grid_has_no_zero_for_gptq_to_keep() -> None:
    seen = correlated(192)
    pruned = build("pruners", "wanda").prune(GAUSSIAN[:48, :192], seen, 0.5)
    restored = quantized({"method": "gptq", "zero": "offset"}, pruned, seen.of_pruned()).restored()
    back = restored[pruned == 0].abs()
    assert (back != 0).any()
    assert back.mean() < 0.2 * restored[pruned != 0].abs().mean()


@pytest.mark.parametrize("zero", ["middle", "integer", "offset"])
def test_a_search_in_parts_is_the_search_at_once(zero: Zero, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(3, 32, zero)
    groups = grid.groups(GAUSSIAN[:20])
    whole = grid.fitted(groups)
    monkeypatch.setattr(_grids, "_NUMBERS", 1)
    for part, other in zip(grid.fitted(groups), whole, strict=True):
        torch.testing.assert_close(part, other)
    lost, plain = (
        (grid.values(grid.codes(groups, p), p) - groups).square().sum() for p in (whole, grid.plain(groups)[1])
    )
    assert lost < 0.95 * plain


def test_the_dead_zone_of_gaussian_weights_is_known() -> None:
    packed = quantized("ternary_aware", GAUSSIAN)
    trits = unpack_trits(packed.tensors["trits"], GAUSSIAN.numel())
    share = math.erf(math.sqrt(2 / math.pi) / 2 / math.sqrt(2))  # P(|w| < E|w| / 2)
    assert float((trits == 0).float().mean()) == pytest.approx(share, abs=0.01)
    assert share == pytest.approx(0.31, abs=0.001)


def test_the_dead_zone_speaks_through_a_bias_and_learns_from_it() -> None:
    torch.manual_seed(0)
    layer, method = torch.nn.Linear(64, 8, bias=False), build("quantizers", {"method": "ternary_aware", "bias": 0.5})
    packed = method.quantize(layer.weight, None)
    weight = layer.weight.detach().clone()
    method.attach(layer, 0)
    states = torch.randn(5, 64)
    expected = states @ packed.restored().T + packed.tensors["bias"].float()
    torch.testing.assert_close(layer(states), expected, atol=2e-3, rtol=1e-3)
    layer(states).sum().backward()
    behind: Any = layer.parametrizations["weight"].original  # type: ignore[index]
    through = states.sum(dim=0).expand(8, 64)
    dead = packed.restored() == 0
    torch.testing.assert_close(behind.grad, through + 0.5 * 5 * dead)
    answers = layer(states).detach()
    method.bake(layer)
    assert set(dict(layer.named_parameters())) == {"weight", "bias"}
    assert torch.equal(layer(states), answers)
    assert not torch.equal(layer.weight, weight)


@pytest.mark.parametrize("name", ["lsq_lora", "ternary_aware"])
def test_what_is_baked_is_what_was_trained_and_is_packed_without_loss(name: str) -> None:
    torch.manual_seed(0)
    layer, method = torch.nn.Linear(64, 16, bias=False), build("quantizers", name)
    states, wanted = torch.randn(64, 64), torch.randn(64, 16)
    method.attach(layer, 3)
    learning = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    adam, losses = torch.optim.Adam(learning, 3e-3), []
    for _ in range(60):
        loss = (layer(states) - wanted).square().mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    answers = layer(states).detach()
    method.bake(layer)
    assert torch.equal(layer(states), answers)
    assert type(layer) is torch.nn.Linear
    assert torch.equal(method.quantize(layer.weight, None).restored(), layer.weight)


def test_lsq_steps_get_the_papers_gradient() -> None:
    """Sum of G (w_q - I (W / s)), and B A gets G where nothing is clipped."""
    method = build("quantizers", {"method": "lsq_lora", "bits": 2, "group": 4, "rank": 1})
    layer = torch.nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, -0.9, 1.7, -4.0]]))
    method.attach(layer, 0)
    inside: Any = layer.parametrizations["weight"][0]  # type: ignore[index]
    inside.step.data.fill_(1.0)
    assert torch.equal(layer.weight, torch.tensor([[0.0, -1.0, 1.0, -2.0]]))
    slope = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    (layer.weight * slope).sum().backward()
    expected = 1 * (0 - 0.3) + 10 * (-1 + 0.9) + 100 * 1 + 1000 * -2
    assert inside.step.grad.item() == pytest.approx(expected, rel=1e-4)
    within = slope * torch.tensor([1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(inside.up.grad, 2.0 * within @ inside.down.detach().T)
