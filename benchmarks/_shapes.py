"""What each method of structured pruning must be told so that all take the same share of a model's blocks away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, nearest_word
from supertiny.core.files import read_json

METHODS = ("drop_blocks", "narrow", "policy_gradient", "learned_masks", "elastic", "magnitude", "random")
"""Of these, magnitude and random are `narrow` by another measure: the floors."""
FLOORS = ("magnitude", "random")
MULTIPLE = 32  # channels that stay fill llama.cpp's blocks


@dataclass(frozen=True)
class Shape:
    """What of a model can be cut."""

    blocks: int
    channels: int
    """Of each block's FFN."""
    ffn: int
    """Weights of one block's FFN."""
    block: int
    """Weights of one block."""

    @classmethod
    def of(cls, folder: Path) -> Shape:
        """Of a stock Hugging Face folder. Raises UserError where its configuration says no such things."""
        config = read_json(folder / "config.json")
        try:
            width, channels, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
            blocks = config["num_hidden_layers"]
        except KeyError as error:
            raise UserError(f"{folder}: config.json has no {error}", "Llama, Mistral and Qwen2 work") from None
        head = config.get("head_dim") or width // heads
        attention = 2 * width * head * (heads + (config.get("num_key_value_heads") or heads))
        return cls(blocks, channels, 3 * width * channels, 3 * width * channels + attention + 2 * width)

    @property
    def weights(self) -> int:
        """Of all blocks."""
        return self.blocks * self.block

    def channels_going(self, share: float) -> float:
        """Share of the FFN channels to cut so that `share` of a block's weights goes, as near as MULTIPLE allows."""
        wished = self.channels * (1 - share * self.block / self.ffn)
        kept = min(round(wished / MULTIPLE) * MULTIPLE, (self.channels - 1) // MULTIPLE * MULTIPLE)
        if kept < MULTIPLE:
            most = (self.channels - MULTIPLE) / self.channels * self.ffn / self.block
            raise UserError(f"channels alone cannot take {share:.0%} of a block away", f"at most {most:.0%}")
        return 1 - kept / self.channels

    def blocks_going(self, share: float) -> int:
        return min(max(1, round(share * self.blocks)), self.blocks - 1)


def known_methods(given: Sequence[str]) -> list[str]:
    """The methods that were asked for, or all. Raises UserError for one that is none."""
    for name in given:
        if name not in METHODS:
            raise UserError(f"prune_quality has no method {name!r}", nearest_word(name, METHODS))
    return list(given) or list(METHODS)


def block_of(method: str, share: float, shape: Shape, seed: int, steps: int = 0) -> Mapping[str, Any]:
    """A reshaper's block that takes `share` of the blocks' weights; its own settings hold otherwise.

    `steps`, where it is not 0, is how many batches methods look at that learn what to cut.
    """
    if method == "drop_blocks":
        return {"method": method, "blocks": shape.blocks_going(share)}
    if method in ("narrow", *FLOORS):
        measure = {"by": method} if method in FLOORS else {}
        return {"method": "narrow", "channels": shape.channels_going(share), **measure, **_seed(method, seed)}
    learning = {"seed": seed, **({"steps": steps} if steps else {})}
    if method == "elastic":
        dropped = round(share / 2 * shape.blocks)
        within = 1 - (1 - share) / (1 - dropped / shape.blocks)  # of the blocks that stay
        channels = shape.channels_going(within) if within > 0 else 0.0
        return {"method": method, "blocks": dropped / shape.blocks, "channels": channels, **learning}
    return {"method": method, "channels": shape.channels_going(share), **learning}


def _seed(method: str, seed: int) -> dict[str, int]:
    return {"seed": seed} if method == "random" else {}
