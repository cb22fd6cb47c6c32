"""What the task loses by each part of the student: a block, a share of FFN channels, the rounding of a kind of tensor.

All is told as the rise of the mean loss on the answers, in nats per token, before anything is taught again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from supertiny.compress.changing import all_matrices
from supertiny.compress.layers import SHARING, blocks_of
from supertiny.compress.reshapers._cutting import strongest
from supertiny.compress.reshapers._importance import importance
from supertiny.compress.reshapers._task_loss import gated, mean_loss, only_blocks, with_answers
from supertiny.compress.reshapers._tokenizer import Pieces
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, write_json
from supertiny.training.grid import BLOCK, round_q4_0
from supertiny.training.lessons import Batch
from supertiny.training.pupil import Pupil

CHANNELS = (0.2, 0.4)  # shares that are looked at, as near as multiples allow
KINDS = tuple(name.rpartition(".")[2] for group in SHARING for name in group)
MULTIPLE = 32  # channels that stay are a multiple of it: llama.cpp's small types store blocks of 32
EXTRA_TOKENS = 8192
Tick = Callable[[int], None]


@dataclass(frozen=True)
class Sensitivity:
    """Rises of the loss on the same rows."""

    loss: float
    """Of the student as it is."""
    blocks: tuple[float, ...]
    """Without each single block."""
    channels: Mapping[str, float]
    """By the number of each block's channels that stay, the others being switched off."""
    kinds: Mapping[str, float]
    """By a kind of matrix, with all of that kind rounded to q4_0."""
    vocabulary: int | None
    """Tokens that stay when the vocabulary is trimmed; None where the tokenizer cannot be."""

    @classmethod
    def measured(cls, pupil: Pupil, calibration: Sequence[Batch], tick: Tick = lambda count: None) -> Sensitivity:
        """`tick` is told of each of `looks(pupil)` looks. Raises UserError where there is nothing to look at."""
        model = pupil.model.eval()
        batches = with_answers(calibration, "the search", model)
        whole = mean_loss(model, batches)
        tick(1)
        places = range(len(blocks_of(model)))
        blocks = []
        for place in places:
            with only_blocks(model, [other for other in places if other != place]):
                blocks.append(mean_loss(model, batches) - whole)
            tick(1)
        channels = {}
        scores = importance(model, batches, "channels", "activation")
        for kept in channels_kept(int(model.config.intermediate_size)):
            gates = torch.zeros_like(scores).scatter_(1, strongest(scores, kept), 1.0)
            with gated(model, {"channels": gates}):
                channels[str(kept)] = mean_loss(model, batches) - whole
            tick(1)
        kinds = {}
        for kind in KINDS:
            with _rounded(model, kind):
                kinds[kind] = mean_loss(model, batches) - whole
            tick(1)
        return cls(whole, tuple(blocks), channels, kinds, _tokens_left(pupil, calibration))

    @classmethod
    def known(cls, path: Path, key: str) -> Sensitivity | None:
        """What was measured before under this key; None where nothing was."""
        found = read_json(path) if path.is_file() else {}
        if found.pop("key", None) != key:
            return None
        return cls(**{**found, "blocks": tuple(found["blocks"])})

    def save(self, path: Path, key: str) -> None:
        write_json(path, {"key": key, **asdict(self)})


def looks(model: Any) -> int:
    """How many times the loss is measured."""
    return 1 + len(blocks_of(model)) + len(channels_kept(int(model.config.intermediate_size))) + len(KINDS)


def channels_kept(total: int) -> list[int]:
    """How many of a block's channels stay when about the shares of `CHANNELS` go; none where no multiple is smaller."""
    possible = range(MULTIPLE, total, MULTIPLE)
    nearest = (min(possible, key=lambda count: abs(count - total * (1 - s)), default=0) for s in CHANNELS)
    return [count for count in dict.fromkeys(nearest) if count]


@contextmanager
def _rounded(model: Any, kind: str) -> Iterator[None]:
    """Within it all matrices of a kind stand where q4_0 puts them; rows that are no multiple of 32 stay as they are."""
    layers = [layer for name, layer in all_matrices(model).items() if name.endswith(f".{kind}")]
    before = [layer.weight.detach().clone() for layer in layers]
    with torch.no_grad():
        for layer in layers:
            if layer.in_features % BLOCK == 0:
                layer.weight.copy_(round_q4_0(layer.weight))
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, before, strict=True):
                layer.weight.copy_(weight)


def _tokens_left(pupil: Pupil, calibration: Sequence[Batch]) -> int | None:
    """About as many as trim_vocabulary would leave; it looks at more rows."""
    try:
        pieces = Pieces(pupil.tokenizer)
    except UserError:
        return None
    used = {place for batch in calibration for place in batch.ids[batch.mask.bool()].tolist()}
    known = pieces.added | set(pieces.texts)
    kept = pieces.closed((pieces.bytes | pieces.added | pieces.most_frequent(EXTRA_TOKENS) | used) & known)
    return len(kept) if len(kept) < len(known) else None
