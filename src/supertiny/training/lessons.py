"""What a pupil learns from: token sequences in which only the answer is learned."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from supertiny.core.errors import UserError
from supertiny.core.protocols import Format
from supertiny.core.records import Example, Tool


@dataclass(frozen=True)
class Lesson:
    """Token ids of prompt and answer; the ids from `answer_start` on are learned."""

    ids: tuple[int, ...]
    answer_start: int
    example: Example | None = None
    """The row that it was made of."""


@dataclass(frozen=True)
class Trial(Lesson):
    """An answer that the pupil wrote itself, and what it is worth."""

    advantage: float = 0.0
    """How much better it is than the others to its request; its tokens get likelier where this is positive."""
    old: tuple[float, ...] = ()
    """Log-probability of each answer token by the weights that wrote it."""
    reference: tuple[float, ...] = ()
    """The same by the weights before training; empty where nothing holds the pupil to them."""


@dataclass(frozen=True)
class Batch:
    """A padded batch. `wanted` marks the places whose next token is an answer token; `targets` are those tokens."""

    ids: torch.Tensor
    """(rows, length) token ids."""
    mask: torch.Tensor
    """(rows, length) 1 where there is a token."""
    wanted: torch.Tensor
    """(rows, length) bool."""
    targets: torch.Tensor
    """(positions,) token ids, in the order in which `wanted` selects."""
    rows: tuple[Lesson, ...] = ()
    """The lessons of the batch, in order."""

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        ids, mask, wanted, targets = (part.to(device) for part in (self.ids, self.mask, self.wanted, self.targets))
        return Batch(ids, mask, wanted, targets, self.rows)

    @property
    def row_of_position(self) -> torch.Tensor:
        """(positions,) the row in which each answer token stands."""
        return self.wanted.nonzero()[:, 0]

    @property
    def tokens(self) -> int:
        return int(self.mask.sum())


def encode_lessons(
    examples: Sequence[Example],
    form: Format,
    tools: Sequence[Tool],
    tokenizer: Any,
    longest: int = 1024,
    setting: str = "transfer.longest_tokens",
    note: Callable[[str], None] = lambda text: None,
) -> list[Lesson]:
    """Lessons of examples with answers. The prompt's and the answer's tokens are made apart, as in serving.

    Made rows of more than `longest` tokens are left out, and `note` is told how many; `setting` names the limit.
    Raises UserError where a gold row is longer than that, or nothing is left to learn from.
    """
    stop = tokenizer.get_vocab().get(form.stop)
    if stop is None:
        raise UserError(
            f"the student's tokenizer has no token {form.stop!r}", "give transfer.format a `stop` that it has"
        )
    lessons = []
    left_out = 0
    for example in examples:
        if example.answer is None or not example.answer.readable:  # the latter would be taught as "no function serves"
            continue
        prompt = tokenizer.encode(form.encode(example.request, tools).text, add_special_tokens=False)
        answer = [*tokenizer.encode(form.write(example.answer), add_special_tokens=False), stop]
        if len(prompt) + len(answer) > longest:
            if example.provenance.get("source", "labelled") != "labelled":
                left_out += 1
                continue
            raise UserError(
                f"row {example.request.id} has {len(prompt) + len(answer)} tokens, more than {longest}",
                f"shorten it or raise {setting}",
            )
        lessons.append(Lesson((*prompt, *answer), len(prompt), example))
    if left_out:
        note(f"  {left_out} rows of more than {longest} tokens are left out; {setting} sets the limit")
    if not lessons:
        raise UserError(
            "there is no example with an answer to learn from", "see prototype/pool.jsonl for what was dropped"
        )
    return lessons


def encode_prompts(
    examples: Sequence[Example], form: Format, tools: Sequence[Tool], tokenizer: Any, longest: int = 1024
) -> list[Lesson]:
    """Prompts alone, of requests that the pupil answers itself; those of `longest` tokens and more are left out."""
    prompts = []
    for example in examples:
        ids = tokenizer.encode(form.encode(example.request, tools).text, add_special_tokens=False)
        if len(ids) < longest:
            prompts.append(Lesson(tuple(ids), len(ids), example))
    return prompts


def grouped(lessons: Sequence[Lesson], rows: int, seed: int) -> list[list[Lesson]]:
    """All lessons once, in groups of similar length in random order, so that little is padding."""
    shuffled = list(lessons)
    generator = random.Random(seed)
    generator.shuffle(shuffled)
    shuffled.sort(key=lambda lesson: len(lesson.ids))
    groups = [shuffled[start : start + rows] for start in range(0, len(shuffled), rows)]
    generator.shuffle(groups)
    return groups


def collate(group: Sequence[Lesson], pad: int) -> Batch:
    """A batch of lessons, padded on the right."""
    longest = max(len(lesson.ids) for lesson in group)
    ids = torch.full((len(group), longest), pad)
    mask = torch.zeros((len(group), longest), dtype=torch.long)
    wanted = torch.zeros((len(group), longest), dtype=torch.bool)
    for row, lesson in enumerate(group):
        length = len(lesson.ids)
        ids[row, :length] = torch.tensor(lesson.ids)
        mask[row, :length] = 1
        wanted[row, lesson.answer_start - 1 : length - 1] = True
    targets = ids.roll(-1, dims=1)[wanted]
    return Batch(ids, mask, wanted, targets, tuple(group))
