"""What each adapter's paper claims, in small; and what adapters say to wrong settings."""

from __future__ import annotations

import copy
import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.training.adapters._coupling import Coupling
from supertiny.training.adapters._experts import ExpertLayer, ExpertPlan
from supertiny.training.adapters._growing import Grown
from supertiny.training.adapters._nf4 import LEVELS, QuantizedLinear
from supertiny.training.adapters._saving import adapter_state, load, save
from supertiny.training.lessons import encode_lessons
from supertiny.training.pupil import Pupil
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, write_student

IDS = torch.arange(3, 63).view(2, 30)
MASK = torch.ones_like(IDS)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


def wrapped(student: Path, name: str, seed: int = 0, **settings: Any) -> Pupil:
    pupil = open_pupil(student)
    pupil.adapter = build("adapters", {"method": name, **settings})
    pupil.model = pupil.adapter.wrap(pupil.model, seed)
    return pupil


def learnt(pupil: Pupil, steps: int, rate: float = 5e-3) -> list[float]:
    live = [weight for weight in pupil.model.parameters() if weight.requires_grad]
    adam = torch.optim.Adam(live, rate)
    pupil.model.train()
    losses = []
    for _ in range(steps):
        logits = pupil.logits_at(IDS[:, :-1], MASK[:, :-1], MASK[:, :-1].bool())
        loss = functional.cross_entropy(logits, IDS[:, 1:].reshape(-1))
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    pupil.model.eval()
    return losses


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(outputs: int = 48, inputs: int = 80, seed: int = 0) -> torch.nn.Linear:
    made = torch.nn.Linear(inputs, outputs)
    made.weight.data = 0.05 * torch.randn(outputs, inputs, generator=generator(seed))
    made.bias.data.zero_()
    return made.requires_grad_(False)


@pytest.mark.parametrize("name", ["lora", "dora", "pissa"])
def test_peft_opens_what_we_saved_unchanged(student: Path, name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    pupil = wrapped(student, name)
    learnt(pupil, 3)
    save(pupil.model, tmp_path, "tiny")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    opened = PeftModel.from_pretrained(open_pupil(student).model, tmp_path)
    with torch.no_grad():
        assert torch.equal(opened(IDS).logits, pupil.model(IDS).logits)


def test_an_adapter_that_does_not_fit_is_refused(student: Path, tmp_path: Path) -> None:
    save(wrapped(student, "triangular", rank=8).model, tmp_path / "own", "tiny")
    save(wrapped(student, "lora", rank=8, targets=["q_proj"]).model, tmp_path / "peft", "tiny")
    with pytest.raises(UserError, match="no adapter that fits tiny"):
        load(wrapped(student, "triangular", rank=4).model, tmp_path / "own", "tiny")
    with pytest.raises(UserError, match="no adapter that fits tiny"):
        load(wrapped(student, "triangular", targets=["q_proj"]).model, tmp_path / "own", "tiny")
    with pytest.raises(UserError, match="is not there"):
        load(open_pupil(student).model, tmp_path / "nowhere", "tiny")


@pytest.mark.parametrize("name", ["lora", "vera", "peanut", "qlora", "triangular", "mode_approximation", "mixlora"])
def test_layers_are_named_and_a_wrong_name_is_told(student: Path, name: str) -> None:
    pupil = wrapped(student, name, targets=["q_proj", "v_proj"])
    names = {path for path in adapter_state(pupil.model) if "proj" in path and "mlp" not in path}
    assert names
    assert all("q_proj" in path or "v_proj" in path for path in names)
    with pytest.raises(UserError, match=r"no linear layer 'q_porj'.*q_proj"):
        wrapped(student, name, targets=["v_proj", "q_porj"])


def test_vectors_are_fewer_than_matrices(student: Path) -> None:
    share = {name: wrapped(student, name).trainable for name in ("ia3", "vera", "lora", "mixlora", "full")}
    assert list(share) == sorted(share, key=lambda name: share[name])
    assert share["full"] == 1


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_virtual_tokens_alone_get_a_gradient(student: Path, name: str) -> None:
    pupil = wrapped(student, name, tokens=5)
    functional.cross_entropy(pupil.logits_at(IDS, MASK, MASK.bool()), IDS.reshape(-1)).backward()  # type: ignore[no-untyped-call]
    moved = {path for path, weight in pupil.model.named_parameters() if weight.grad is not None}
    assert moved == {path for path, weight in pupil.model.named_parameters() if weight.requires_grad}
    assert all(path.startswith("prompt_encoder") for path in moved)
    assert wrapped(student, "prefix", width=16).logits_at(IDS, MASK, MASK.bool()).shape == (60, 259)


def test_triangular_is_not_stuck_at_its_zero_start(student: Path) -> None:
    pupil = wrapped(student, "triangular", every=1000)
    grown = [module for module in pupil.model.modules() if isinstance(module, Grown)]
    assert all(not module.core.any() and module.up.any() and module.down.any() for module in grown)
    losses = learnt(pupil, 20)
    assert losses[-1] < losses[0] - 0.1
    assert all(module.core[:4, :4].any() for module in grown)
    assert not any(module.core[4:].any() or module.core[:, 4:].any() for module in grown)


def test_triangular_gives_ranks_to_layers_that_move_until_the_budget_is_open(student: Path) -> None:
    pupil = wrapped(student, "triangular", rank=8, every=4, share=0.3)
    grown = [module for module in pupil.model.modules() if isinstance(module, Grown)]
    assert {int(module.open_ranks) for module in grown} == {4}
    learnt(pupil, 3)
    with torch.no_grad():
        before = pupil.model(IDS).logits
        pupil.model.growth._grow()
        assert {int(module.open_ranks) for module in grown} == {4, 8}
        assert torch.allclose(pupil.model(IDS).logits, before, atol=1e-6)  # a block that opens starts at zero
    learnt(pupil, 77)
    ranks = [int(module.open_ranks) for module in grown]
    assert sum(ranks) == 8 * len(grown)
    assert len(set(ranks)) > 1  # not all alike
    assert max(ranks) <= 16
    with torch.no_grad():
        pupil.model(IDS)
    assert int(pupil.model.growth.passes) == 80  # answering does not count


def test_what_growth_counts_is_saved_with_the_weights(student: Path, tmp_path: Path) -> None:
    pupil = wrapped(student, "triangular", every=4)
    learnt(pupil, 10)
    save(pupil.model, tmp_path, "tiny")
    again = load(wrapped(student, "triangular", every=4).model, tmp_path, "tiny")
    ranks = [[int(m.open_ranks) for m in model.modules() if isinstance(m, Grown)] for model in (again, pupil.model)]
    assert ranks[0] == ranks[1] != [4] * len(ranks[0])
    assert int(again.growth.passes) == 10


def experts(balance: float = 0.0, seed: int = 0) -> tuple[ExpertLayer, Any]:
    torch.manual_seed(seed)
    frozen = torch.nn.Module()
    frozen.gate_proj, frozen.up_proj, frozen.down_proj = layer(32, 16, 1), layer(32, 16, 2), layer(16, 32, 3)
    frozen.act_fn = torch.nn.SiLU()
    made = ExpertLayer(frozen, ExpertPlan(4, 2, 3, 2.0, balance), generator(seed))
    for weights in made.ups.values():
        weights.data = 0.1 * torch.randn(weights.shape, generator=generator(5))
    return made, frozen


def test_experts_share_the_frozen_products_and_say_what_each_alone_would() -> None:
    made, frozen = experts()
    x = torch.randn(2, 7, 16, generator=generator(9))
    odds = torch.softmax(x @ made.router.T, -1)
    weights, choice = odds.topk(2)
    weights = weights / weights.sum(-1, keepdim=True)
    expected = torch.zeros_like(x)
    for row in range(2):
        for place in range(7):
            for weight, expert in zip(weights[row, place], choice[row, place].tolist(), strict=True):
                whole = {
                    name: getattr(frozen, name).weight + 2.0 * made.ups[name][expert] @ made.downs[name][expert]
                    for name in made.ups
                }
                inner = functional.silu(whole["gate_proj"] @ x[row, place]) * (whole["up_proj"] @ x[row, place])
                expected[row, place] += weight * (whole["down_proj"] @ inner)
    assert torch.allclose(made(x), expected, atol=1e-5)


@pytest.mark.parametrize(("balance", "even"), [(0.0, False), (1.0, True)])
def test_the_loss_beside_keeps_experts_equally_busy(balance: float, even: bool) -> None:
    made, _ = experts(balance)
    made.router.data[:2] += 0.5  # a router that leans to two experts
    adam = torch.optim.Adam(made.parameters(), 1e-2)
    x = torch.rand(4, 50, 16, generator=generator(9))
    for _ in range(100):
        (0.0 * made(x).sum()).backward()  # no main loss: what moves is moved by the loss beside it
        adam.step()
        adam.zero_grad()
    load = made.load.clamp_min(1e-9)
    assert (float(-(load * load.log()).sum()) > 0.8 * math.log(4)) == even


def test_experts_that_cannot_be_chosen_or_placed_are_told(student: Path) -> None:
    with pytest.raises(UserError, match="5 of 4 experts"):
        wrapped(student, "mixlora", chosen=5)
    model = open_pupil(student).model
    for block in model.model.layers:
        block.mlp = torch.nn.Identity()
    with pytest.raises(UserError, match="no feed-forward layers"):
        build("adapters", "mixlora").wrap(model, 0)


def test_a_layer_more_costs_as_many_numbers_as_the_rank(student: Path) -> None:
    counts = {
        names: sum(
            weight.numel()
            for weight in adapter_state(wrapped(student, "mode_approximation", targets=names).model).values()
        )
        for names in (("k_proj",), ("k_proj", "v_proj"))
    }
    assert counts[("k_proj", "v_proj")] - counts[("k_proj",)] == 2 * 16  # two layers of each


def test_a_coupling_can_be_undone() -> None:
    for width in (10, 7):
        coupling = Coupling(width, 4, generator(), torch.zeros(1, dtype=torch.float64))
        x = torch.randn(3, width, generator=generator(1), dtype=torch.float64)
        assert torch.equal(coupling(x), x)
        for weight in coupling.parameters():
            weight.data = torch.randn(weight.shape, generator=generator(2), dtype=torch.float64)
        assert (coupling(x) - x).abs().max() > 0.1
        assert torch.allclose(coupling.undone(coupling(x)), x, atol=1e-12)


@pytest.mark.parametrize("twice", [False, True])
def test_four_bits_restore_weights_nearly_and_their_own_levels_wholly(twice: bool) -> None:
    frozen = layer(96, 640)
    held = QuantizedLinear(frozen, 64, twice)
    restored = held.weight_as(torch.float32)
    assert (restored - frozen.weight).square().mean().sqrt() < 0.1 * frozen.weight.std()
    assert held.bytes < frozen.weight.numel() * (0.5165 if twice else 0.5626) + 8 + 256
    if not twice:
        assert torch.allclose(
            QuantizedLinear(held.restored(torch.float32), 64, False).weight_as(torch.float32), restored
        )
    flat = torch.tensor(LEVELS).repeat(8).view(2, 64)
    exact = torch.nn.Linear(64, 2, bias=False)
    exact.weight.data = flat * torch.tensor([[0.5], [3.0]])
    assert torch.allclose(QuantizedLinear(exact, 64, False).weight_as(torch.float32), exact.weight)


@pytest.mark.parametrize("shape", [(5, 7), (3, 64), (1, 1)])
def test_four_bits_hold_every_shape_and_zeros(shape: tuple[int, int]) -> None:
    frozen = layer(*shape)
    for weight in (frozen.weight.detach().clone(), torch.zeros(shape)):
        frozen.weight.data = weight
        restored = QuantizedLinear(frozen, 64, True).weight_as(torch.float32)
        assert restored.shape == shape
        assert (restored - weight).abs().max() <= 0.2 * weight.abs().max()


def test_restored_weights_are_not_kept_for_the_backward_pass() -> None:
    frozen = layer()
    held = QuantizedLinear(frozen, 64, True)
    x = torch.randn(4, 80, generator=generator(3), requires_grad=True)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        held(x).square().sum().backward()
    assert torch.Size(held.shape) not in kept
    twin = x.detach().clone().requires_grad_()
    functional.linear(twin, held.weight_as(torch.float32), frozen.bias).square().sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, twin.grad)  # type: ignore[arg-type]


def test_qlora_learns_as_lora_does_on_a_fraction_of_the_memory(student: Path) -> None:
    pupil, plain = wrapped(student, "qlora"), wrapped(student, "lora")
    held = [module for module in pupil.model.modules() if isinstance(module, QuantizedLinear)]
    assert sum(module.bytes for module in held) < 0.14 * 4 * sum(module.weights_held for module in held)
    assert pupil.parameters == plain.parameters
    ours, theirs = learnt(pupil, 30)[-1], learnt(plain, 30)[-1]
    assert ours == pytest.approx(theirs, rel=0.05)


def test_adding_in_bfloat16_would_lose_what_merging_keeps(student: Path) -> None:
    pupil = wrapped(student, "lora", rank=4)
    with torch.no_grad():
        for name, weight in pupil.model.named_parameters():
            if "lora_B" in name:
                weight += 1e-4
    exact = pupil.stock.model.layers[0].mlp.up_proj.weight.detach().clone()
    pupil.model.to(torch.bfloat16)
    merged = pupil._merged().model.layers[0].mlp.up_proj.weight
    assert merged.dtype == torch.float32
    kept = copy.deepcopy(merged.detach())
    assert (kept - exact).abs().max() < 5e-4


def test_ranks_that_grew_are_there_again_after_a_kill(student: Path, tmp_path: Path) -> None:
    form = build("formats", "compact")
    learner = build("learners", {"method": "imitate", "rows": 2, "passes": 3, "learning_rate": 1e-2})

    def taught(checkpoint: Path | None, steps: int | None = None) -> tuple[list[Any], dict[str, torch.Tensor]]:
        pupil = wrapped(student, "triangular", rank=8, every=2, share=0.3)
        lessons = encode_lessons(examples("labelled", 6), form, small_task().tools, pupil.tokenizer)
        records = list(islice(learner.fit(pupil, lessons, 1, checkpoint, 2), steps))
        return records, adapter_state(pupil.model)

    whole, state = taught(None)
    taught(tmp_path / "learner.safetensors", 6)
    rest, resumed = taught(tmp_path / "learner.safetensors")
    assert [step.loss for step in rest] == [step.loss for step in whole[4:]]
    assert state.keys() == resumed.keys()
    assert all(torch.equal(state[name], resumed[name]) for name in state)
    assert max(int(value) for name, value in state.items() if name.endswith("open_ranks")) > 4, "nothing grew"
