"""What a student learned earlier, and plain text: read from files, made into lessons, measured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from supertiny.core.errors import UserError
from supertiny.core.files import read_rows
from supertiny.core.records import Example
from supertiny.training.lessons import Lesson, collate, encode_lessons
from supertiny.training.practice import Practice
from supertiny.training.pupil import Pupil


def earlier_lessons(path: Path, pupil: Pupil, practice: Practice, longest: int) -> list[Lesson]:
    """Lessons of the rows of a train.jsonl, written in the format of the task at hand.

    Raises UserError with the row's number where it is no such row.
    """
    examples = []
    for number, row in enumerate(read_rows(path), 1):
        try:
            examples.append(Example.from_json(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: row {number} is no example: {error!r}", "give a prototype's train.jsonl"
            ) from None
    examples = [example for example in examples if example.answer is not None]
    if len(examples) < 2:
        raise UserError(f"{path} has {len(examples)} rows with an answer", "give at least 2: one is only measured")
    setting = "continual.longest_tokens"
    return encode_lessons(examples, practice.form, practice.tools, pupil.tokenizer, longest, setting, pupil.note)


def parted(earlier: Sequence[Lesson], held_back: int, seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """(rows to learn, rows to measure), in random order; never more of the second than of the first."""
    shuffled = random.Random(seed).sample(earlier, len(earlier))
    held = min(held_back, len(earlier) // 2)
    return shuffled[held:], shuffled[:held]


def blocks_of_text(path: Path, tokenizer: Any, block_tokens: int, seed: int) -> list[Lesson]:
    """The text in blocks, in random order; all tokens of a block but its first are learned."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None
    ids = tokenizer.encode(text, add_special_tokens=False)
    cut = [tuple(ids[start : start + block_tokens]) for start in range(0, len(ids), block_tokens)]
    blocks = [Lesson(block, 1) for block in cut if len(block) > 1]
    if not blocks:
        raise UserError(f"{path} has no text to learn from")
    return random.Random(seed).sample(blocks, len(blocks))


def mean_loss(pupil: Pupil, lessons: Sequence[Lesson], rows: int) -> float:
    """Nats per answer token; the pupil's weights and mode stay."""
    was_training = pupil.model.training
    pupil.model.eval()
    total, positions = 0.0, 0
    in_order = sorted(lessons, key=lambda lesson: len(lesson.ids))
    with torch.no_grad():
        for start in range(0, len(in_order), rows):
            batch = collate(in_order[start : start + rows], pupil.pad_id).to(pupil.device)
            total += float(pupil.answer_loss(batch)) * batch.targets.numel()
            positions += batch.targets.numel()
    pupil.model.train(was_training)
    return total / max(1, positions)
