"""Training on llama.cpp's 4-bit grid: the rounding is llama.cpp's own, and what was trained on it stays on it."""

from __future__ import annotations

import gguf
import numpy as np
import torch

from supertiny.training.grid import on_grid, round_q4_0, settle


def _llama_round(weight: torch.Tensor) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType.Q4_0
    packed = gguf.quants.quantize(weight.numpy().astype(np.float32), kind)
    return torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())


def test_the_rounding_is_that_of_the_gguf_package() -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(3))
    weight[0, :32] = 0
    weight[1, [3, 8]] = torch.tensor([5.0, -5.0])  # equally large: the first one sets the scale, and its sign
    weight[2, [3, 8]] = torch.tensor([-5.0, 5.0])
    assert torch.allclose(round_q4_0(weight), _llama_round(weight), atol=1e-6)


def test_rounding_twice_is_rounding_once() -> None:
    once = round_q4_0(torch.randn(16, 64, generator=torch.Generator().manual_seed(4)))
    assert torch.allclose(round_q4_0(once), once, atol=1e-6)


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(8, 32)
        self.inner = torch.nn.Linear(32, 32, bias=False)
        self.head = torch.nn.Linear(32, 8, bias=False)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head


def test_within_the_block_weights_are_seen_rounded_and_learn_all_the_same() -> None:
    torch.manual_seed(0)
    model = _Model()
    before, head = model.inner.weight.detach().clone(), model.head.weight.detach().clone()
    with on_grid(model, "q4_0"):
        assert torch.allclose(model.inner.weight, round_q4_0(before), atol=1e-6)
        model.inner(torch.ones(1, 32)).sum().backward()
        behind = model.inner.parametrizations.weight.original
        assert behind.grad is not None
        assert behind.grad.abs().sum() > 0
        with torch.no_grad():
            behind -= 0.5 * behind.grad
    assert not torch.allclose(model.inner.weight, before)
    assert torch.allclose(model.inner.weight, round_q4_0(model.inner.weight), atol=1e-6)
    assert torch.equal(model.head.weight, head)
    assert set(dict(model.named_parameters())) == {"embedding.weight", "inner.weight", "head.weight"}


def test_other_types_are_left_alone() -> None:
    model = _Model()
    before = model.inner.weight.detach().clone()
    with on_grid(model, "q8_0"):
        assert torch.equal(model.inner.weight, before)
    assert torch.equal(model.inner.weight, before)


def test_a_settled_model_is_what_the_file_will_hold() -> None:
    torch.manual_seed(1)
    model = _Model()
    table = model.embedding.weight.detach().clone()
    settle(model, "q4_0")
    kind = gguf.GGMLQuantizationType.Q8_0
    stored = gguf.quants.dequantize(gguf.quants.quantize(table.numpy(), kind), kind)
    assert not torch.equal(model.embedding.weight, table)
    assert torch.allclose(model.embedding.weight, torch.from_numpy(stored.copy()), atol=1e-7)
    assert torch.allclose(model.inner.weight, _llama_round(model.inner.weight.detach()), atol=1e-7)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    settle(model, "q8_0")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
