"""First all blocks of a group learn as one, then each for itself: few degrees of freedom early, all of them late.

Paper: Lin et al., M6-10T, 2021, arXiv:2110.03888.
Use when: a student starts from random weights, or an adapter is fresh; with `start: own`, blocks keep what they know
and share only what they learn.
Differs from the paper: tied blocks keep copies of their own, whose gradients are averaged, so that no memory is saved
while they are tied, and their optimiser states are there when they part (in bfloat16 copies may differ by a rounding,
since their masters do); nothing is offloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from supertiny.core.errors import UserError
from supertiny.training.learners._blocks import blocks_of
from supertiny.training.lessons import Batch, Lesson
from supertiny.training.loop import Plan, Step, descend, steps_of
from supertiny.training.pupil import Pupil


@dataclass(frozen=True)
class Staged:
    """Cross-entropy on answer tokens; the shape of the student stays what it was."""

    groups: Annotated[int, Field(ge=1)] = 1
    """Groups of neighbouring blocks that are tied."""
    tied_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the steps in which they are."""
    start: Literal["own", "first", "mean"] = "own"
    """What tied blocks start from: their own weights, or all from the first's or the mean of their group."""
    learning_rate: float = 3e-4
    """Peak of the cosine schedule."""
    passes: int = 4
    """Times that each lesson is seen."""
    rows: int = 32
    """Rows of a batch."""
    weight_decay: float = 0.0
    """AdamW's decay; it draws blocks of different weights apart from moving alike."""
    clip: float = 1.0
    """Largest norm of the gradient."""

    def fit(
        self,
        pupil: Pupil,
        lessons: Sequence[Lesson],
        seed: int,
        checkpoint: Path | None = None,
        every: int = 0,
    ) -> Iterator[Step]:
        """Yields a record per step; its `tied` is 1 while blocks are tied, 0 after."""
        ties = _Ties(_kin(pupil.model, self.groups))
        tied = round(self.tied_share * steps_of(len(lessons), self.rows, self.passes))
        if tied:
            _start_alike(ties.kin, self.start)

        def draw(group: Sequence[Lesson], step: int) -> Sequence[Lesson]:
            ties.hold = step < tied
            return group

        def loss_of(batch: Batch) -> torch.Tensor:
            ties.begin()
            return pupil.answer_loss(batch)

        def told() -> Mapping[str, float]:
            return {"tied": float(ties.hold)}

        return ties.kept(descend(pupil, lessons, Plan.of(self, seed), loss_of, checkpoint, every, draw, told))


class _Ties:
    """Averages the gradients of weights that belong together as soon as all of them are there."""

    def __init__(self, kin: Sequence[Sequence[torch.nn.Parameter]]) -> None:
        self.kin = kin
        self.hold = False
        self.ready = [0] * len(kin)

    def begin(self) -> None:
        """A new backward pass: one that broke off has left counts behind."""
        self.ready = [0] * len(self.kin)

    def kept(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps, with the ties in place as long as they last."""
        hooks = [
            parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._arrived(number))  # type: ignore[no-untyped-call]
            for number, members in enumerate(self.kin)
            for parameter in members
        ]
        try:
            yield from steps
        finally:
            for hook in hooks:
                hook.remove()

    def _arrived(self, number: int) -> None:
        self.ready[number] += 1
        if self.hold and self.ready[number] == len(self.kin[number]):
            gradients = [parameter.grad for parameter in self.kin[number] if parameter.grad is not None]
            mean = torch.stack([gradient.float() for gradient in gradients]).mean(0)
            for gradient in gradients:
                gradient.copy_(mean)


def _kin(model: torch.nn.Module, groups: int) -> list[list[torch.nn.Parameter]]:
    """Weights of the same name and shape in the blocks of a group, those that may be changed; two at least."""
    blocks = blocks_of(model)
    if groups > len(blocks):
        raise UserError(f"staged: {groups} groups of {len(blocks)} blocks", "lower `groups`")
    found: dict[tuple[int, str, torch.Size], list[torch.nn.Parameter]] = {}
    for place, block in enumerate(blocks):
        for name, parameter in block.named_parameters():
            if parameter.requires_grad:
                found.setdefault((place * groups // len(blocks), name, parameter.shape), []).append(parameter)
    kin = [list({id(member): member for member in members}.values()) for members in found.values()]
    return [members for members in kin if len(members) > 1]


@torch.no_grad()
def _start_alike(kin: Sequence[Sequence[torch.nn.Parameter]], start: str) -> None:
    for members in kin if start != "own" else ():
        mean = torch.stack([member.float() for member in members]).mean(0)
        for member in members:
            member.copy_(members[0] if start == "first" else mean)
