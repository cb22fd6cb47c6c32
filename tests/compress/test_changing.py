"""What pruners and quantizers tell each other over a model's matrices; and that they stay on a matrix's own device."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from supertiny.compress.changing import all_matrices, change_by, reshaped
from supertiny.compress.inputs import Inputs
from supertiny.compress.packed import llama_blocks
from supertiny.compress.steps import Step, step_of
from supertiny.core.methods import build, cards
from supertiny.core.progress import Progress
from tests.compress.test_layers import calibration, tiny

SEEN = Inputs.of(torch.randn(300, 64, generator=torch.Generator().manual_seed(1)))
MATRIX = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
GRIDS = [{"method": name, "zero": zero} for name in ("rtn", "gptq") for zero in ("middle", "integer", "offset")]
TYPES = [{"method": "gptq", "grid": grid} for grid in ("q4_0", "q4_1", "q5_0", "q8_0")]
QUANTIZERS: list[Any] = [*sorted(cards("quantizers")), *GRIDS, *TYPES]


def test_a_reshaper_that_takes_long_is_seen_to_get_on() -> None:
    def shown(method: Any) -> str:
        page = io.StringIO()
        reshaped(method, tiny(), calibration(), Progress(Console(file=page)), "the cut")
        return page.getvalue()

    block = {"method": "policy_gradient", "channels": 0.25, "multiple": 8, "steps": 3}
    assert "the cut: 100 of 100 %" in shown(build("reshapers", block))
    assert shown(build("reshapers", "keep")) == ""


def test_a_quantizer_is_told_of_the_matrices_that_a_pruner_went_over() -> None:
    told: list[bool] = []

    def quantize(weight: torch.Tensor, inputs: Inputs) -> Any:
        told.append(inputs.pruned)
        return SimpleNamespace(restored=lambda: weight)

    model = tiny()
    step = Step("quantizers", SimpleNamespace(needs=("calibration",), quantize=quantize))
    pruners = [step_of({"method": "magnitude", "sparsity": 0.5, "skip": ["*.down_proj", "*.q_proj"]}, "here")]
    for before in ([], pruners, [*pruners, Step("pruners", None, skip=("*_proj",))]):
        change_by(step, model, calibration(), 0, before)
    count = len(all_matrices(model))
    untouched = [name.endswith(("down_proj", "q_proj")) for name in all_matrices(model)]
    assert told == [False] * count + [not skipped for skipped in untouched] * 2


@pytest.mark.parametrize("block", QUANTIZERS, ids=str)
def test_what_a_pruner_removed_stays_removed_or_is_told_to_come_back(block: Any) -> None:
    method = build("quantizers", block)
    pruned = build("pruners", "magnitude").prune(MATRIX, None, 0.5)
    restored = method.quantize(pruned, SEEN.of_pruned()).restored()
    assert bool((restored[pruned == 0] != 0).any()) is getattr(method, "zeroless", False)


@pytest.mark.parametrize("name", sorted(cards("pruners")))
def test_pruners_make_nothing_on_another_device(name: str) -> None:
    with torch.device("meta"):
        pruned = build("pruners", name).prune(MATRIX, SEEN, 0.5)
    assert torch.equal(pruned, build("pruners", name).prune(MATRIX, SEEN, 0.5))


@pytest.mark.parametrize("block", QUANTIZERS, ids=str)
def test_quantizers_make_nothing_on_another_device(block: Any) -> None:
    fresh = Inputs.of(torch.eye(64))
    with torch.device("meta"):
        restored = build("quantizers", block).quantize(MATRIX, fresh).restored()
    assert torch.equal(restored, build("quantizers", block).quantize(MATRIX, fresh).restored())


@pytest.mark.parametrize("type", ["q4_0", "q4_1", "q5_0", "q8_0"])
def test_blocks_lie_where_their_codes_lie(type: str) -> None:
    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    codes = torch.zeros(2, 32).as_subclass(Elsewhere)
    assert llama_blocks(type, codes, torch.ones(2, 1), torch.zeros(2, 1)).device.type == "meta"
