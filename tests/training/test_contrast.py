"""What an expert is better at than an amateur, and that a student leans there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.training.learners._contrasting import aimed, aims_of, amateur_of
from supertiny.training.learners.contrast import Contrast
from supertiny.training.lessons import Lesson, collate, encode_lessons
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


def test_the_aim_is_the_papers_formula() -> None:
    strong = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.5, 0.3, 0.15, 0.05]]).log()
    weak = torch.tensor([[0.2, 0.6, 0.1, 0.1], [0.5, 0.3, 0.15, 0.05]]).log()
    apart = sum(p * math.log(p / q) for p, q in zip([0.5, 0.3, 0.15, 0.05], [0.2, 0.6, 0.1, 0.1], strict=True))
    places, tokens, shares = aimed(strong, weak, beta=apart - 1e-4, alpha=0.2)
    assert places.tolist() == [0]  # the second position is the same to both
    # 0.15 is above a fifth of 0.5, 0.05 is not: ratios 2.5, 0.5, 1.5.
    found = dict(zip(tokens[0].tolist(), shares[0].tolist(), strict=True))
    assert found == pytest.approx({0: 2.5 / 4.5, 1: 0.5 / 4.5, 2: 1.5 / 4.5, 3: 0.0}, abs=1e-6)
    assert aimed(strong, weak, beta=apart + 1e-4, alpha=0.2)[0].tolist() == []
    assert aimed(strong, weak, beta=0.0, alpha=1.0)[2].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]


def test_the_amateur_is_the_student_without_its_top_blocks(folder: Path, lessons: Sequence[Lesson]) -> None:
    pupil = open_pupil(folder)
    before = weights(pupil)
    shallow = open_pupil(folder)
    shallow.model.base_model.layers = shallow.model.base_model.layers[:1]
    batch = collate(lessons[:3], pupil.pad_id)
    with torch.no_grad():
        with amateur_of(pupil, None, 0.3) as amateur:
            seen = amateur(batch)
        wanted = shallow.logits_at(batch.ids, batch.mask, batch.wanted).log_softmax(-1)
        whole = pupil.logits_at(batch.ids, batch.mask, batch.wanted).log_softmax(-1)
    assert torch.equal(seen, wanted)
    assert not torch.allclose(seen, whole, atol=1e-3)
    assert same_weights(before, weights(pupil))


def test_an_aim_does_not_depend_on_the_rows_beside_it(folder: Path, lessons: Sequence[Lesson]) -> None:
    """Rows are padded on the right: the position that is read must be the row's own."""
    pupil = open_pupil(folder)
    with amateur_of(pupil, None, 0.5) as amateur:
        together = aims_of(pupil, amateur, lessons, 6, 0.0, 0.2)
        alone = aims_of(pupil, amateur, lessons, 1, 0.0, 0.2)
    for lesson in lessons:
        left, right = together[lesson.ids, lesson.answer_start], alone[lesson.ids, lesson.answer_start]
        assert left.answers == right.answers == len(lesson.ids) - lesson.answer_start == len(left.places)
        assert torch.allclose(left.shares, right.shares, atol=1e-3)
        assert torch.allclose(left.shares.sum(-1), torch.ones(left.answers))


def test_the_student_leans_to_where_it_beats_the_amateur(folder: Path, lessons: Sequence[Lesson]) -> None:
    """Without labels: the answer's own tokens are not in the loss."""
    pupil = open_pupil(folder)
    with amateur_of(pupil, None, 0.5) as amateur:
        aims = aims_of(pupil, amateur, lessons, 6, 0.0, 0.5)

    def lead() -> float:
        batch = collate(lessons, pupil.pad_id)
        with torch.no_grad():
            logprobs = pupil.logits_at(batch.ids, batch.mask, batch.wanted).log_softmax(-1)
        own = [aims[lesson.ids, lesson.answer_start] for lesson in batch.rows]
        tokens, shares = torch.cat([a.tokens for a in own]), torch.cat([a.shares for a in own])
        return float((shares * logprobs.gather(-1, tokens)).sum(-1).mean())

    before = lead()
    learner = Contrast(beta=0.0, alpha=0.5, truth_share=0.0, skipped_share=0.5, passes=20, rows=6, learning_rate=3e-3)
    steps = list(learner.fit(pupil, lessons, 3))
    assert lead() > before + 0.5
    assert steps[-1].loss < 0.8 * steps[0].loss
    assert {step.more["kept"] for step in steps} == {1.0}


def test_beta_parts_the_positions_and_all_of_them_are_told(folder: Path, lessons: Sequence[Lesson]) -> None:
    kept = []
    positions = sum(len(lesson.ids) - lesson.answer_start for lesson in lessons)
    for beta in (0.0, 0.002, 0.004, 100.0):
        notes: list[str] = []
        pupil = open_pupil(folder)
        pupil.note = notes.append
        (step,) = Contrast(beta=beta, passes=1, rows=6).fit(pupil, lessons, 3)
        kept.append(step.more["kept"])
        assert f"{round(kept[-1] * positions)} of {positions} answer tokens" in notes[0]
    assert kept[0] == 1.0
    assert kept[-1] == 0.0
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) > 2
    with pytest.raises(UserError, match="no position"):
        Contrast(beta=100.0, truth_share=0.0).fit(open_pupil(folder), lessons, 3)


def test_an_amateur_of_its_own_must_have_the_same_tokens(
    folder: Path, lessons: Sequence[Lesson], tmp_path: Path
) -> None:
    other = write_student(tmp_path / "other", seed=5)
    (step, *_) = Contrast(amateur=other, beta=0.0, rows=6).fit(open_pupil(folder), lessons, 3)
    assert step.more["kept"] == 1.0
    card = other / "tokenizer.json"
    card.write_text(card.read_text("utf-8").replace("<|im_start|>", "<|other|>"), encoding="utf-8")
    with pytest.raises(UserError, match="other tokens"):
        Contrast(amateur=other).fit(open_pupil(folder), lessons, 3)
    with pytest.raises(UserError, match="no Hugging Face"):
        Contrast(amateur=tmp_path / "nowhere").fit(open_pupil(folder), lessons, 3)


def test_a_single_block_has_no_amateur(folder: Path, lessons: Sequence[Lesson]) -> None:
    pupil = open_pupil(folder)
    pupil.model.config.num_hidden_layers = 1
    pupil.model = LlamaForCausalLM(pupil.model.config)
    with pytest.raises(UserError, match="one block"):
        Contrast().fit(pupil, lessons, 3)


def test_an_adapter_alone_is_moved(folder: Path, lessons: Sequence[Lesson]) -> None:
    pupil: Pupil = open_pupil(folder)
    pupil.model = get_peft_model(pupil.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).base_model.model
    before = weights(pupil)
    list(Contrast(beta=0.0, rows=6, passes=4, learning_rate=1e-2).fit(pupil, lessons, 3))
    after = weights(pupil)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {n for n in after if "lora" in n}
