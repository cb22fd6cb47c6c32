"""Blocks of a group are one while they are tied, and part for good after that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.training.learners.staged import Staged
from supertiny.training.lessons import Batch, Lesson, encode_lessons
from supertiny.training.pupil import Pupil
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, weights, write_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def lessons(folder: Path) -> list[Lesson]:
    form = build("formats", "compact")
    return encode_lessons(examples("labelled", 6), form, small_task().tools, open_pupil(folder).tokenizer)


def deeper(folder: Path) -> Pupil:
    """A student of four blocks."""
    pupil = open_pupil(folder)
    pupil.model.config.num_hidden_layers = 4
    torch.manual_seed(1)
    pupil.model = LlamaForCausalLM(pupil.model.config)
    return pupil


def blocks(pupil: Pupil) -> list[dict[str, torch.Tensor]]:
    return [
        {name: p.detach().clone() for name, p in block.named_parameters()} for block in pupil.model.base_model.layers
    ]


def alike(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("start", ["first", "mean"])
def test_blocks_of_a_group_are_equal_bit_for_bit_until_they_part(
    folder: Path, lessons: Sequence[Lesson], start: str
) -> None:
    pupil = deeper(folder)
    before = blocks(pupil)
    learner = Staged(groups=2, tied_share=0.5, start=start, rows=2, passes=4, learning_rate=3e-3)  # type: ignore[arg-type]
    for step in learner.fit(pupil, lessons, 3):
        now = blocks(pupil)
        tied = step.step <= step.of // 2
        assert step.more["tied"] == float(tied)
        assert (alike(now[0], now[1]), alike(now[2], now[3])) == (tied, tied)
        assert not alike(now[1], now[2])
        assert not alike(now[0], before[0])


def test_blocks_that_keep_their_own_weights_share_what_they_learn(folder: Path, lessons: Sequence[Lesson]) -> None:
    pupil = deeper(folder)
    before = blocks(pupil)
    steps = Staged(tied_share=0.5, rows=2, passes=4, learning_rate=3e-3).fit(pupil, lessons, 3)
    for step in steps:
        learned = [
            {name: now[name] - then[name] for name in now} for now, then in zip(blocks(pupil), before, strict=True)
        ]
        apart = max(float((learned[0][name] - learned[3][name]).abs().max()) for name in learned[0])
        assert float(learned[0]["mlp.up_proj.weight"].abs().max()) > 1e-4
        assert apart < 1e-6 if step.step <= step.of // 2 else apart > 1e-5


def test_a_tied_gradient_is_the_mean_of_all_even_in_parts(folder: Path, lessons: Sequence[Lesson]) -> None:
    """A batch that does not fit in memory is learned in parts: ties hold over all of them."""
    taught = []
    for room in (6, 2):
        pupil = deeper(folder)

        def tight(batch: Batch, own: Pupil = pupil, room: int = room) -> torch.Tensor:
            if len(batch.ids) > room:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return Pupil.answer_loss(own, batch)

        pupil.answer_loss = tight  # type: ignore[method-assign]
        list(Staged(tied_share=1.0, start="first", rows=6, passes=3, learning_rate=1e-4).fit(pupil, lessons, 3))
        now = blocks(pupil)
        assert alike(now[0], now[3])
        taught.append(weights(pupil))
    assert all(torch.allclose(taught[0][name], taught[1][name], atol=2e-5) for name in taught[0])


def test_no_share_of_ties_is_plain_imitation(folder: Path, lessons: Sequence[Lesson]) -> None:
    plain, staged = open_pupil(folder), open_pupil(folder)
    list(build("learners", {"method": "imitate", "rows": 2, "passes": 2, "weight_decay": 0.0}).fit(plain, lessons, 3))
    list(Staged(tied_share=0.0, start="first", rows=2, passes=2).fit(staged, lessons, 3))
    assert all(torch.equal(tensor, weights(staged)[name]) for name, tensor in weights(plain).items())


def test_blocks_of_an_adapter_are_tied_and_the_rest_stays(folder: Path, lessons: Sequence[Lesson]) -> None:
    pupil = open_pupil(folder)
    torch.manual_seed(0)
    pupil.model = get_peft_model(pupil.model, LoraConfig(r=2, target_modules=["q_proj"])).base_model.model
    before = weights(pupil)
    list(Staged(tied_share=1.0, start="first", rows=2, passes=2, learning_rate=1e-2).fit(pupil, lessons, 3))
    after = weights(pupil)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {n for n in after if "lora" in n}
    lora = [name for name in after if "layers.0" in name and "lora" in name]
    assert lora
    assert all(torch.equal(after[name], after[name.replace("layers.0", "layers.1")]) for name in lora)


def test_more_groups_than_blocks_are_refused(folder: Path, lessons: Sequence[Lesson]) -> None:
    with pytest.raises(UserError, match="3 groups of 2 blocks"):
        Staged(groups=3).fit(open_pupil(folder), lessons, 3)
