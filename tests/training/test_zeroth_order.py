"""Slopes are derivatives, weights stay where they are, and the memory is that of inference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.training.learners._walking import Walk, Weights
from supertiny.training.learners.zeroth_order import ZerothOrder
from supertiny.training.lessons import Batch, Lesson, collate, encode_lessons
from supertiny.training.pupil import Pupil
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, same_weights, weights, write_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def lessons(folder: Path) -> list[Lesson]:
    form = build("formats", "compact")
    return encode_lessons(examples("labelled", 6), form, small_task().tools, open_pupil(folder).tokenizer)


def loss_of(pupil: Pupil, batch: Batch) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(pupil.logits_at(batch.ids, batch.mask, batch.wanted), batch.targets)


def moved_by(before: dict[str, torch.Tensor], pupil: Pupil) -> set[str]:
    return {name for name, tensor in weights(pupil).items() if not torch.equal(tensor, before[name])}


def test_a_slope_is_the_derivative_along_its_direction(folder: Path, lessons: Sequence[Lesson]) -> None:
    pupil = open_pupil(folder)
    batch = collate(lessons[:3], pupil.pad_id)
    moving = Weights(pupil.model, 1, 1e-3, 0.0, "random", 3)
    loss_of(pupil, batch).backward()
    for number in range(4):
        walk = Walk(0, number, 0)
        with torch.no_grad():
            sides = []
            for side in (1.0, -1.0):
                with moving.at(moving.beside(walk, side)):
                    sides.append(float(loss_of(pupil, batch)))
            ahead = [moving.beside(walk, 1.0)(index) for index in range(len(moving.parameters))]
            along = sum(
                float((p.grad * (there - p)).sum()) / 1e-3
                for p, there in zip(moving.parameters, ahead, strict=True)
                if there is not None and p.grad is not None
            )
        assert (sides[0] - sides[1]) / 2e-3 == pytest.approx(along, rel=0.02, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_computes_as_if_moved_and_its_weights_stay_bit_for_bit(
    folder: Path, lessons: Sequence[Lesson], dtype: torch.dtype
) -> None:
    pupil = open_pupil(folder)
    pupil.model.to(dtype)
    batch, before = collate(lessons[:3], pupil.pad_id), weights(pupil)
    moving = Weights(pupil.model, 1, 1e-2, 0.0, "random", 3)
    walk = Walk(0, 0, 0)
    really = copy.deepcopy(pupil.model)
    with torch.no_grad():
        for index, parameter in enumerate(really.parameters()):
            there = moving.beside(walk, 1.0)(index)
            assert there is not None
            parameter.copy_(there)
        with moving.at(moving.beside(walk, 1.0)):
            seen = pupil.logits_at(batch.ids, batch.mask, batch.wanted)
        # The embedding is tied to the head: both must have been moved alike.
        wanted = Pupil(really, pupil.tokenizer, pupil.device).logits_at(batch.ids, batch.mask, batch.wanted)
        assert torch.equal(seen, wanted)
        assert not torch.equal(seen, pupil.logits_at(batch.ids, batch.mask, batch.wanted))
    assert same_weights(before, weights(pupil))
    with pytest.raises(IndexError), moving.at(moving.beside(walk, 1.0)):
        pupil.logits_at(batch.ids + 10_000, batch.mask, batch.wanted)
    assert same_weights(before, weights(pupil))


def peak_bytes(pupil: Pupil, work: Any) -> int:
    """Most bytes of tensors at once, the weights among them, as the allocator saw it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most + sum(p.numel() * p.element_size() for p in pupil.model.parameters())


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, torch.float32),
        ({"rule": "adam", "memory": 2}, torch.bfloat16),
        ({"rule": "conservative", "sparsity": 0.5}, torch.float32),
    ],
    ids=str,
)
def test_memory_is_that_of_inference(
    folder: Path, lessons: Sequence[Lesson], settings: dict[str, Any], dtype: torch.dtype
) -> None:
    """MeZO's claim: at most 1.1 times the peak of a forward pass; one step back-propagated takes several times that."""
    config = LlamaConfig(
        vocab_size=259, hidden_size=192, intermediate_size=384, num_hidden_layers=24, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    pupil = open_pupil(folder)
    pupil.model = LlamaForCausalLM(config).to(dtype)
    batch = collate(lessons[:1], pupil.pad_id)

    def inference() -> None:
        with torch.no_grad():
            loss_of(pupil, batch)

    learner = ZerothOrder(passes=2, rows=1, **settings)
    steps = learner.fit(pupil, lessons[:1], 3)
    next(steps)  # the first one measures no thresholds
    alone = peak_bytes(pupil, inference)
    taught = peak_bytes(pupil, lambda: next(steps))
    assert alone < taught <= 1.1 * alone
    if not settings:  # so that the measure sees what it should
        assert peak_bytes(pupil, lambda: loss_of(pupil, batch).backward()) > 1.8 * alone


def test_both_sides_see_the_same_function_where_an_adapter_drops(folder: Path, lessons: Sequence[Lesson]) -> None:
    """Nothing is dropped: a slope between two masks would be noise, a thousand times what it should be."""
    learner = ZerothOrder(rows=2, passes=2, learning_rate=1e-2)
    found = []
    for share in (0.0, 0.5):
        pupil = open_pupil(folder)
        pupil.model = build("adapters", {"method": "lora", "rank": 4, "dropout": share}).wrap(pupil.model, 3)
        records = []
        pupil.model.train()
        for step in learner.fit(pupil, lessons[:2], 3):
            records.append((step.loss, step.gradient_norm))
            pupil.model.train()  # as an exam leaves it
        found.append((records, weights(pupil)))
    assert found[0][0] == found[1][0]
    assert same_weights(found[0][1], found[1][1])
    assert found[0][0][0][1] > 0


def test_the_conservative_rule_never_makes_the_batch_worse(folder: Path, lessons: Sequence[Lesson]) -> None:
    losses = {}
    for rule in ("plain", "conservative"):
        learner = ZerothOrder(rule=rule, rows=2, passes=12, learning_rate=0.01, clip=100.0)  # type: ignore[arg-type]
        losses[rule] = [step.loss for step in learner.fit(open_pupil(folder), lessons[:2], 3)]
    assert losses["conservative"] == sorted(losses["conservative"], reverse=True)
    assert losses["conservative"][-1] < losses["conservative"][0]
    assert losses["plain"] != sorted(losses["plain"], reverse=True)


def test_blocks_are_moved_in_turn(folder: Path, lessons: Sequence[Lesson]) -> None:
    pupil = open_pupil(folder)
    steps = ZerothOrder(rows=2, passes=3, blocks=3, learning_rate=1e-2).fit(pupil, lessons[:2], 3)
    turns = []
    for _ in range(3):
        before = weights(pupil)
        next(steps)
        turns.append(moved_by(before, pupil))
    assert turns[0] | turns[1] | turns[2] == set(weights(pupil))
    assert not turns[0] & turns[1]
    assert not turns[1] & turns[2]
    assert all(turns)


@pytest.mark.parametrize("mask", ["random", "small", "large"])
def test_only_a_share_of_the_weights_moves(folder: Path, lessons: Sequence[Lesson], mask: Any) -> None:
    pupil = open_pupil(folder)
    before = {name: p.detach().clone() for name, p in pupil.model.named_parameters()}
    learner = ZerothOrder(rows=2, passes=3, sparsity=0.75, mask=mask, learning_rate=1e-4)
    list(learner.fit(pupil, lessons[:2], 3))
    name = "model.layers.0.mlp.up_proj.weight"
    after = dict(pupil.model.named_parameters())[name]
    moved = after != before[name]
    assert moved.float().mean() == pytest.approx(0.25, abs=0.02)
    magnitude = before[name].abs()
    ratio = float(magnitude[moved].mean() / magnitude[~moved].mean())
    assert {"random": 0.9 < ratio < 1.1, "small": ratio < 0.5, "large": ratio > 2}[mask]


def test_steps_below_half_a_unit_are_not_lost_in_bfloat16_and_what_was_not_felt_does_not_move() -> None:
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Linear(160, 160, bias=False).bfloat16()])
    moving = Weights(model, 1, 1e-2, 0.0, "random", 3)
    (weight,) = moving.parameters
    with torch.no_grad():
        weight.fill_(1.0)
    walk = Walk(0, 0, 0, slope=1.0)
    direction = moving._walked(walk, 0, 0, torch.ones(25_600), torch.bfloat16)
    for step in range(20):  # each is a tenth of what bfloat16 can tell from 1
        moving.go([walk], 4e-4, step)
    lost = (weight.detach().float() - 1).view(-1)
    assert float((lost * direction).sum() / direction.square().sum()) == pytest.approx(-20 * 4e-4, rel=0.1)
    still = Weights(model, 1, 1e-4, 0.0, "random", 3)  # too small to be felt at 1
    with torch.no_grad():
        weight.fill_(1.0)
    still.go([walk], 1.0, 0)
    assert bool((weight == 1).all())


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "adam", "memory": 3, "directions": 2},
        {"rule": "adam", "blocks": 2, "memory": 2},
        {"rule": "sign", "sparsity": 0.5, "mask": "small"},
        {"rule": "conservative", "sparsity": 0.5},
    ],
    ids=str,
)
def test_every_rule_can_stop_and_go_on(
    folder: Path, lessons: Sequence[Lesson], tmp_path: Path, settings: dict[str, Any]
) -> None:
    learner = ZerothOrder(rows=2, passes=3, learning_rate=3e-3, **settings)
    whole, stopped, resumed = open_pupil(folder), open_pupil(folder), open_pupil(folder)
    records = list(learner.fit(whole, lessons, 3))
    checkpoint = tmp_path / "learner.safetensors"
    list(islice(learner.fit(stopped, lessons, 3, checkpoint, 2), 7))
    rest = list(learner.fit(resumed, lessons, 3, checkpoint, 2))
    assert [step.loss for step in rest] == [step.loss for step in records[6:]]
    assert same_weights(weights(whole), weights(resumed))


def test_adam_means_are_those_of_the_slopes_it_remembers(folder: Path) -> None:
    """The first step of Adam is the sign of the gradient; with one direction that is the direction's sign."""
    pupil = open_pupil(folder)
    moving = Weights(pupil.model, 1, 1e-3, 0.0, "random", 3)
    walk = Walk(0, 0, 0, slope=-2.0, first=1.0, second=1.0)
    before = [p.detach().clone() for p in moving.parameters]
    directions = [moving.beside(walk, 1.0)(index) for index in range(len(before))]
    moving.go([walk], 1e-3, 0)
    for there, old, new in zip(directions, before, moving.parameters, strict=True):
        assert there is not None
        clear = (there - old).abs() > 1e-4
        assert torch.allclose((new - old)[clear], 1e-3 * (there - old)[clear].sign(), atol=1e-6)


def test_an_adapter_alone_is_moved(folder: Path, lessons: Sequence[Lesson]) -> None:
    pupil = open_pupil(folder)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=True)
    pupil.model = get_peft_model(pupil.model, config).base_model.model
    before = weights(pupil)
    learner = ZerothOrder(rows=2, passes=20, directions=4, learning_rate=5e-2, clip=10.0)
    steps = list(learner.fit(pupil, lessons[:2], 3))
    moved = moved_by(before, pupil)
    assert moved == {name for name in before if "lora" in name}
    assert steps[-1].loss < steps[0].loss


def test_weights_that_are_read_from_afar_are_felt_too(folder: Path, lessons: Sequence[Lesson]) -> None:
    """Factors that an adapter's layers share stand in a module that nobody calls."""
    pupil = open_pupil(folder)
    torch.manual_seed(0)
    shared = torch.nn.Linear(64, 1, bias=False)
    batch = collate(lessons[:2], pupil.pad_id)
    pupil.model.requires_grad_(False)
    pupil.model.aside = shared
    pupil.model.base_model.norm.register_forward_hook(lambda module, given, states: states + shared.weight)
    before = shared.weight.detach().clone()
    moving = Weights(pupil.model, 1, 1e-2, 0.0, "random", 3)
    with torch.no_grad():
        moving.look(lambda: loss_of(pupil, batch))
        here = loss_of(pupil, batch)
        with moving.at(moving.beside(Walk(0, 0, 0), 1.0)):
            assert loss_of(pupil, batch) != here
    assert torch.equal(shared.weight, before)
    steps = list(ZerothOrder(rows=2, passes=10, directions=4, learning_rate=3e-2).fit(pupil, lessons[:2], 3))
    assert steps[-1].loss < steps[0].loss
    assert not torch.equal(shared.weight, before)


def test_more_groups_than_weights_are_refused(folder: Path, lessons: Sequence[Lesson]) -> None:
    with pytest.raises(UserError, match="groups"):
        ZerothOrder(blocks=1000).fit(open_pupil(folder), lessons, 3)


def test_a_batch_that_does_not_fit_is_halved(folder: Path, lessons: Sequence[Lesson]) -> None:
    def small(self: Pupil, ids: torch.Tensor, mask: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if len(ids) > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return Pupil.logits_at(self, ids, mask, wanted)

    notes: list[str] = []
    whole, tight = open_pupil(folder), open_pupil(folder)
    tight.note = notes.append
    tight.logits_at = lambda *given: small(tight, *given)  # type: ignore[method-assign]
    learner = ZerothOrder(rows=6, passes=3)
    ample = [step.loss for step in learner.fit(whole, lessons, 3)]
    assert [step.loss for step in learner.fit(tight, lessons, 3)] == pytest.approx(ample, rel=1e-4)
    assert len(notes) == 2
    assert "2 at a time" in notes[-1] or "1 at a time" in notes[-1]
