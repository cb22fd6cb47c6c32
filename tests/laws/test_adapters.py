"""What every adapter obeys: fresh it changes nothing, it learns alone, merged it is stock and computes the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from supertiny.core.errors import UserError
from supertiny.core.methods import build, cards
from supertiny.training.adapters._saving import adapter_state, load, save
from supertiny.training.pupil import Pupil
from tests.tiny_student import open_pupil, write_student

ADAPTERS = sorted(cards("adapters"))
# What stands before the prompt is attended to from the first step on: there is no start that changes nothing.
STANDS_BEFORE = {"prompt", "prefix"}
# Held in 4 bits, a model says something else before anything is learned: the law holds for the 4-bit model.
ROUNDED = {"qlora"}
UNMERGED = {name for name in ADAPTERS if "own_runtime" in getattr(cards("adapters")[name].load(), "needs", ())}
MERGED = sorted(set(ADAPTERS) - UNMERGED)
NOTHING_RANDOM = {"full", "ia3"}
IDS = torch.arange(3, 63).view(2, 30)
MASK = torch.ones_like(IDS)
MASK[1, 20:] = 0  # the second row is shorter


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


def wrapped(student: Path, name: str, seed: int = 0) -> Pupil:
    pupil = open_pupil(student)
    pupil.adapter = build("adapters", name)
    pupil.model = pupil.adapter.wrap(pupil.model, seed)
    return pupil


def said(model: Any) -> torch.Tensor:
    """Logits (tokens, vocabulary) of the rows' own tokens, by the model's own forward pass."""
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS, attention_mask=MASK).logits
        return logits[:, -IDS.shape[1] :][MASK.bool()]


def trained(pupil: Pupil, steps: int = 6, rate: float = 0.5) -> list[float]:
    """Losses of plain gradient descent on one batch."""
    pupil.model.train()
    live = [weight for weight in pupil.model.parameters() if weight.requires_grad]
    losses = []
    for _ in range(steps):
        wanted = MASK.bool() & MASK.roll(-1, 1).bool()
        wanted[:, -1] = False
        loss = torch.nn.functional.cross_entropy(pupil.logits_at(IDS, MASK, wanted), IDS.roll(-1, 1)[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        with torch.no_grad():
            for weight in live:
                if weight.grad is not None:
                    weight -= rate * weight.grad
                weight.grad = None
        losses.append(loss.item())
    return losses


def frozen(model: Any) -> dict[str, torch.Tensor]:
    learning = {tensor.data_ptr() for tensor in adapter_state(model).values()}  # a tied head has two names
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.data_ptr() not in learning}


def same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name not in STANDS_BEFORE])
def test_fresh_it_changes_nothing(student: Path, name: str) -> None:
    pupil = wrapped(student, name)
    before = said(pupil.stock if name in ROUNDED else open_pupil(student).model)
    assert (said(pupil.model) - before).abs().max() < 1e-5


@pytest.mark.parametrize("name", ADAPTERS)
def test_only_its_own_weights_learn(student: Path, name: str) -> None:
    pupil = wrapped(student, name)
    still, moving = frozen(pupil.model), copy.deepcopy(adapter_state(pupil.model))
    assert moving
    trained(pupil, 3)
    assert same(still, frozen(pupil.model))
    assert not same(moving, adapter_state(pupil.model))
    if name != "full":
        original = open_pupil(student).model.state_dict()
        assert pupil.trainable < 0.5
        assert not set(original) & {key for key, weight in pupil.model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_few_steps_of_descent_lower_a_loss(student: Path, name: str) -> None:
    losses = trained(wrapped(student, name))
    assert losses[-1] < losses[0] - 1e-4


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_seed_alone_decides(student: Path, name: str) -> None:
    state = torch.random.get_rng_state()
    first, again = wrapped(student, name, 1).model.state_dict(), wrapped(student, name, 1).model.state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is nobody's
    assert same(first, again)
    if name not in NOTHING_RANDOM and name != "pissa":  # a decomposition
        assert not same(first, wrapped(student, name, 2).model.state_dict())


@pytest.mark.parametrize("name", MERGED)
def test_merged_it_is_stock_and_computes_the_same(student: Path, name: str) -> None:
    pupil, plain = wrapped(student, name), open_pupil(student).model
    trained(pupil)
    before = said(pupil.model)
    stock = pupil.adapter.merge(pupil.model)
    assert (said(stock) - before).abs().max() < 1e-5
    assert (said(stock) - said(plain)).abs().max() > 1e-3  # something was learned
    assert type(stock) is LlamaForCausalLM
    assert stock.config.to_dict() == plain.config.to_dict()
    assert vars(stock).keys() == vars(plain).keys()
    assert [(n, type(m)) for n, m in stock.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert [n for n, _ in stock.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert all(weight.requires_grad for weight in stock.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in stock.modules())
    assert stock.get_output_embeddings().weight is stock.get_input_embeddings().weight


@pytest.mark.parametrize("name", sorted(UNMERGED))
def test_what_cannot_be_merged_says_so(student: Path, name: str, tmp_path: Path) -> None:
    pupil = wrapped(student, name)
    with pytest.raises(UserError, match="artifact must be a stock model"):
        pupil.save(tmp_path / "saved")
    with pytest.raises(UserError, match="cannot be merged"):
        _ = pupil.stock


def test_most_adapters_can_be_merged() -> None:
    assert {"prompt", "prefix", "mixlora"} == UNMERGED


@pytest.mark.parametrize("name", MERGED)
def test_a_pupil_saves_stock_weights_and_learns_on(student: Path, name: str, tmp_path: Path) -> None:
    pupil = wrapped(student, name)
    trained(pupil, 3)
    before, kept = said(pupil.model), copy.deepcopy(pupil.model.state_dict())
    pupil.save(tmp_path / "saved", torch.float32)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert (said(opened) - before).abs().max() < 1e-5
    assert same(kept, pupil.model.state_dict())
    assert trained(pupil, 4)[-1] < trained(wrapped(student, name), 1)[0]


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_pupil_reads_the_same_logits_as_the_wrapped_model(student: Path, name: str) -> None:
    pupil = wrapped(student, name)
    trained(pupil, 2)
    whole = said(pupil.model)
    with torch.no_grad():
        assert pupil.hidden(IDS, MASK).shape == (*IDS.shape, 64)
        assert (pupil.logits_at(IDS, MASK, MASK.bool()) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_model_in_bfloat16_learns_and_keeps_its_precision(student: Path, name: str) -> None:
    pupil = Pupil.open(student, "bfloat16")
    pupil.adapter = build("adapters", name)
    pupil.model = pupil.adapter.wrap(pupil.model, 0)
    before = copy.deepcopy(adapter_state(pupil.model))
    trained(pupil)
    assert not same(before, adapter_state(pupil.model))
    assert pupil.logits_at(IDS, MASK, MASK.bool()).isfinite().all()
    if name in MERGED:
        stock = pupil.stock
        assert {weight.dtype for weight in stock.parameters()} == {torch.bfloat16}
        assert stock.model.rotary_emb.inv_freq.dtype == torch.float32
        assert (said(stock).float() - said(pupil.model).float()).abs().max() < 0.05


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_saved_and_opened_for_its_own_base_alone(student: Path, name: str, tmp_path: Path) -> None:
    pupil = wrapped(student, name)
    trained(pupil, 3)
    before = said(pupil.model)
    save(pupil.model, tmp_path, "tiny-student")
    shell = open_pupil(student).model
    if not (tmp_path / "adapter_config.json").exists():
        shell = build("adapters", name).wrap(shell, 0)
    again = load(shell, tmp_path, "tiny-student")
    assert torch.equal(said(again), before)
    assert any(weight.requires_grad for weight in again.parameters()) or name in STANDS_BEFORE
    with pytest.raises(UserError, match=r"tiny-student.*another-student"):
        load(open_pupil(student).model, tmp_path, "another-student")


@pytest.mark.parametrize("name", MERGED)
def test_a_head_of_its_own_stays_what_it_is(student: Path, name: str) -> None:
    pupil = open_pupil(student)
    pupil.model.config.tie_word_embeddings = False
    head = pupil.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone() + 0.01)
    kept = head.weight.detach().clone()
    pupil.adapter = build("adapters", name)
    pupil.model = pupil.adapter.wrap(pupil.model, 0)
    trained(pupil, 3)
    before = said(pupil.model)
    stock = pupil.adapter.merge(pupil.model)
    assert (said(stock) - before).abs().max() < 1e-5
    assert torch.equal(stock.get_output_embeddings().weight, kept) or name == "full"
