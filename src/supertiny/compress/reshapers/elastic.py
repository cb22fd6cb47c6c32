"""Trains once so that many shapes can be cut out of one model, and cuts out the one that is asked for.

Paper: Fu et al., AmoebaLLM, 2024, arXiv:2411.10606.
Use when: several sizes are wanted of one student, or blocks and channels are to go together.
Differs from the paper: all weights train, where it trains a mixture of adapters that looks at the shape; heads stay;
every block keeps the same number of channels and no biases are added, so that the configuration stays stock; the
metric of the search over depths is the loss on the task's answers.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.compress.reshapers._cutting import blocks_of, cut, keep_blocks, kept_counts, strongest
from supertiny.compress.reshapers._importance import importance
from supertiny.compress.reshapers._task_loss import (
    Advance,
    answer_logits,
    drawn,
    gated,
    mean_loss,
    only_blocks,
    part_of,
    unheard,
    with_answers,
)
from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch
from supertiny.training.loop import Plan, learning_rate_at
from supertiny.training.optimiser import Optimiser

_WIDTHS = 4  # numbers of channels that training visits, from all to the fewest


@dataclass(frozen=True)
class _Nest:
    """What can be cut out: which blocks stay at each depth, and how the channels are ordered."""

    depths: list[list[int]]
    """Places of the blocks that stay when 0, 1, 2 ... are dropped."""
    scores: torch.Tensor
    """(blocks, channels): those of the highest scores stay."""

    def gates(self, blocks: Sequence[int], channels: int) -> torch.Tensor:
        kept = strongest(self.scores[list(blocks)], channels)
        return torch.zeros(len(blocks), self.scores.shape[1]).scatter_(1, kept, 1.0)


@dataclass(frozen=True)
class Elastic:
    """Each step teaches the whole model, the smallest shape and a random one between; the whole teaches the others."""

    blocks: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the blocks that goes, rounded to whole blocks."""
    channels: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of each block's FFN channels that goes."""
    steps: Annotated[int, Field(ge=0)] = 100
    """Batches that are learned from."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak of the cosine schedule."""
    multiple: Annotated[int, Field(ge=1)] = 32
    """Channels that stay are a multiple of it: llama.cpp's small types store blocks of 32."""
    seed: int = 0
    """Of the shapes that are drawn and of the order of batches."""

    needs = ("calibration",)
    reports = True

    def reshape(self, model: Any, calibration: Sequence[Batch], advance: Advance = unheard) -> Any:
        """The model in the asked shape. Raises UserError where that cannot be had."""
        return self.cut_out(model, calibration, [(self.blocks, self.channels)], advance)[0]

    def cut_out(
        self, model: Any, batches: Sequence[Batch], shapes: Sequence[tuple[float, float]], advance: Advance = unheard
    ) -> list[Any]:
        """One model per shape, (share of blocks, share of channels) that goes, all of one training of `model`."""
        total = len(blocks_of(model, "elastic"))
        sizes = [(round(blocks * total), self._channels(model, channels)) for blocks, channels in shapes]
        dropped = max(count for count, _ in sizes)
        if dropped >= total:
            raise UserError(f"elastic: cannot drop {dropped} of {total} blocks", "leave at least one")
        batches = with_answers(batches, "elastic", model)
        scores = importance(model, batches, "channels", "fluctuation")
        nest = _Nest(_depths(model, batches, dropped, part_of(advance, 0, 0.5)), scores)
        self._train(model, batches, nest, min(channels for _, channels in sizes), part_of(advance, 0.5, 1))
        advance(1.0, 1.0)  # also where nothing was to be trained
        cuts = [model if len(sizes) == 1 else copy.deepcopy(model) for _ in sizes]
        for made, (count, channels) in zip(cuts, sizes, strict=True):
            keep_blocks(made, nest.depths[count])
            cut(made, {"channels": scores[nest.depths[count]]}, {"channels": channels})
        return cuts

    def _channels(self, model: Any, share: float) -> int:
        counts, _ = kept_counts(model, "elastic", share, 0.0, self.multiple)
        return counts.get("channels", int(model.config.intermediate_size))

    def _train(self, model: Any, batches: Sequence[Batch], nest: _Nest, fewest: int, advance: Advance) -> None:
        plan = Plan(self.learning_rate, passes=1, rows=1, seed=self.seed)
        optimiser = Optimiser(list(model.parameters()), plan.learning_rate)
        generator = random.Random(self.seed)
        most = nest.scores.shape[1]
        widths = [most - (most - fewest) * place // (_WIDTHS - 1) for place in range(_WIDTHS)]
        with torch.enable_grad():
            for step, batch in enumerate(drawn(batches, self.steps, self.seed, advance)):
                logits = answer_logits(model, batch)
                whole = torch.nn.functional.cross_entropy(logits, batch.targets)
                whole.backward()  # type: ignore[no-untyped-call]
                teacher, reference = logits.detach().softmax(-1), whole.detach()
                between = generator.choice(nest.depths), generator.choice(widths)
                for blocks, channels in ((nest.depths[-1], fewest), between):
                    with only_blocks(model, blocks), gated(model, {"channels": nest.gates(blocks, channels)}):
                        loss = torch.nn.functional.cross_entropy(answer_logits(model, batch), teacher)
                    # Each shape weighs as much as the whole model does, however much worse it still is.
                    (loss * (reference / loss.detach().clamp_min(1e-6))).backward()  # type: ignore[no-untyped-call]
                if not math.isfinite(optimiser.step(learning_rate_at(step, self.steps, plan))):
                    raise UserError(f"elastic: the loss is not finite at step {step + 1}", "lower the learning rate")


def _depths(model: Any, batches: Sequence[Batch], most: int, advance: Advance) -> list[list[int]]:
    """Places of the blocks that stay for 0 to `most` dropped ones, by dynamic programming from the last to the first.

    best[m] is the best way found so far to drop m of the blocks that were looked at; a block that is looked at joins
    best[m - 1] where the loss is then lower than that of best[m].
    """
    total = len(model.base_model.layers)
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for looked, place in enumerate(reversed(range(total)), 1):
        found = dict(best)
        for count in range(1, most + 1):
            if count - 1 not in best:
                continue
            dropped = [*best[count - 1][1], place]
            with only_blocks(model, [other for other in range(total) if other not in dropped]):
                loss = mean_loss(model, batches)
            if count not in found or loss < found[count][0]:
                found[count] = (loss, dropped)
        best = found
        advance(looked, total)
    return [[place for place in range(total) if place not in best[count][1]] for count in range(most + 1)]
