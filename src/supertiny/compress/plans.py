"""Plans: which blocks, channels, tokens and bits go, what that will take, and in what order it is worth trying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supertiny.compress.budget import Budget
from supertiny.compress.sensitivity import EXTRA_TOKENS, MULTIPLE, Sensitivity
from supertiny.core.errors import UserError
from supertiny.core.files import read_json

BITS = {"q4_0": 4.5, "q8_0": 8.5}
_BLOCK_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
_UPGRADES = 2  # kinds of matrices, the most sensitive first, that a plan may keep at 8 bits
_TRIMMING = 0.01  # share of the loss: what a smaller vocabulary is taken to cost, so that it is not had for nothing


@dataclass(frozen=True)
class Shape:
    """The sizes of a student that decide what it takes; all in numbers of weights, or of dimensions."""

    blocks: int
    width: int
    channels: int
    queries: int
    """Outputs of the query projection."""
    keys: int
    """Outputs of the key projection; values have as many."""
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, student: Path) -> Shape:
        """Raises UserError where config.json lacks a size."""
        config = read_json(student / "config.json")
        try:
            heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
            head = int(config.get("head_dim") or width // heads)
            groups = int(config.get("num_key_value_heads") or heads)
            sizes = int(config["num_hidden_layers"]), width, int(config["intermediate_size"]), heads * head
            return cls(*sizes, groups * head, int(config["vocab_size"]), bool(config.get("tie_word_embeddings")))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{student / 'config.json'} lacks a size", "make the student again") from None

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of a block's matrices by their kind."""
        return {
            "q_proj": (self.queries, self.width),
            "k_proj": (self.keys, self.width),
            "v_proj": (self.keys, self.width),
            "o_proj": (self.width, self.queries),
            "gate_proj": (self.channels, self.width),
            "up_proj": (self.channels, self.width),
            "down_proj": (self.width, self.channels),
        }

    @property
    def parameters(self) -> int:
        inner = sum(out * width for out, width in self.matrices().values()) + 2 * self.width
        return self.blocks * inner + self.width + self.vocabulary * self.width * (1 if self.tied else 2)

    def bytes(self, type: str, types: Mapping[str, str] | None = None) -> float:
        """Of a file without its tokenizer: matrices of `type`, kinds in `types` of theirs, the outer ones q8_0."""
        own = types or {}
        bits = self.blocks * sum(
            out * width * (BITS[own.get(kind, type)] if width % MULTIPLE == 0 else 16)
            for kind, (out, width) in self.matrices().items()
        )
        outer = self.vocabulary * self.width * (8.5 if self.width % MULTIPLE == 0 else 16) * (1 if self.tied else 2)
        return (bits + outer + 32 * self.width * (2 * self.blocks + 1)) / 8


@dataclass(frozen=True)
class Plan:
    """Steps of the compress stage, and what they are expected to take."""

    name: str
    steps: tuple[Any, ...]
    rise: float
    """Expected rise of the loss, in nats per token, before anything is taught again: plans are ordered by it."""
    parameters: int
    bytes: float
    """Of the matrices; the tokenizer comes on top."""
    type: str
    vocabulary: int

    def figures(self, overhead: float = 0.0, p50: float | None = None) -> dict[str, float | None]:
        """What a budget is compared with; `overhead` is what a file holds beside its matrices."""
        return {"bytes": self.bytes + overhead, "parameters": float(self.parameters), "p50": p50}


def baselines(shape: Shape) -> list[Plan]:
    """The student as it is, in 8 and in 4 bits: the first points of every search."""
    made = []
    for type in ("q8_0", "q4_0"):
        fitted = _fitted(shape, ()) if type == "q4_0" else []
        steps = (*fitted, {"method": "gguf", "type": type})
        made.append(Plan(type, steps, 0.0, shape.parameters, shape.bytes(type), type, shape.vocabulary))
    return made


def plans(shape: Shape, sensitivity: Sensitivity, on_grid: bool = True) -> list[Plan]:
    """All plans that no other one is expected to beat in loss and bytes, those of the least loss first.

    `on_grid` says whether the recovery after a cut trains on q4_0's grid; where it does not, gptq fits the weights to
    it. q8_0 has no need of either: rounding to it loses next to nothing.
    """
    made = sorted(_all(shape, sensitivity, on_grid), key=lambda plan: (plan.rise, plan.bytes))
    front: list[Plan] = []
    for plan in made:
        if not front or plan.bytes < front[-1].bytes:
            front.append(plan)
    return front


def chosen(offered: Sequence[Plan], count: int) -> list[Plan]:
    """`count` of the plans, in order: the most promising one, and others spread over the rest."""
    if count >= len(offered):
        return list(offered)
    if count == 1:
        return [offered[0]]
    places = [round(place * (len(offered) - 1) / (count - 1)) for place in range(count)]
    return [offered[place] for place in dict.fromkeys(places)]


def nearest(offered: Sequence[Plan], budget: Budget, overhead: float = 0.0) -> Plan:
    """The plan that comes nearest to the sizes of the budget."""
    sizes = Budget(bytes=budget.bytes, parameters=budget.parameters)
    return min(offered, key=lambda plan: (sum(sizes.excess(plan.figures(overhead)).values()), plan.rise))


def _all(shape: Shape, found: Sensitivity, on_grid: bool) -> Iterator[Plan]:
    for vocabulary in dict.fromkeys((shape.vocabulary, found.vocabulary or shape.vocabulary)):
        for gone in dict.fromkeys(round(share * shape.blocks) for share in _BLOCK_SHARES):
            for kept in (shape.channels, *(int(known) for known in found.channels)):
                if gone < shape.blocks:
                    cut = replace(shape, blocks=shape.blocks - gone, channels=kept, vocabulary=vocabulary)
                    yield from _typed(shape, cut, found, on_grid)


def _typed(shape: Shape, cut: Shape, found: Sensitivity, on_grid: bool) -> Iterator[Plan]:
    """Plans of one shape: 8 bits, 4 bits, and 4 bits but for the kinds that suffer most."""
    left = cut.blocks / shape.blocks
    rise = sum(sorted(max(0.0, one) for one in found.blocks)[: shape.blocks - cut.blocks])
    rise += left * max(0.0, found.channels.get(str(cut.channels), 0.0))
    rise += _TRIMMING * found.loss * (cut.vocabulary < shape.vocabulary)
    suffering = sorted(found.kinds, key=lambda kind: -found.kinds[kind])
    offered: list[tuple[str, list[str]]] = [("q8_0", [])]
    offered += [("q4_0", suffering[:count]) for count in range(_UPGRADES + 1)]
    for type, spared in offered:
        rounding = sum(max(0.0, found.kinds[kind]) for kind in found.kinds if kind not in spared)
        types = dict.fromkeys(spared, "q8_0")
        yield Plan(
            _name(shape, cut, type, spared),
            _steps(shape, cut, type, spared, on_grid),
            rise + left * rounding * (type == "q4_0"),
            cut.parameters,
            cut.bytes(type, types),
            type,
            cut.vocabulary,
        )


def _name(shape: Shape, cut: Shape, type: str, spared: Sequence[str]) -> str:
    """Also the name of a folder: `blocks-24_channels-1216_trimmed_q4_0`."""
    parts = [f"blocks-{cut.blocks}"] if cut.blocks < shape.blocks else []
    parts += [f"channels-{cut.channels}"] if cut.channels < shape.channels else []
    parts += ["trimmed"] if cut.vocabulary < shape.vocabulary else []
    parts += [type, *(f"{kind.removesuffix('_proj')}-q8_0" for kind in spared)]
    return "_".join(parts)


def _steps(shape: Shape, cut: Shape, type: str, spared: Sequence[str], on_grid: bool) -> tuple[dict[str, Any], ...]:
    """What shrinks first; then the grid, where the recovery does not train on it; then the file."""
    steps: list[dict[str, Any]] = []
    gone, share = shape.blocks - cut.blocks, 1 - cut.channels / shape.channels
    if cut.vocabulary < shape.vocabulary:
        steps.append({"method": "trim_vocabulary", "extra_tokens": EXTRA_TOKENS})
    if gone:
        steps.append({"method": "drop_blocks", "blocks": gone})
    if share:
        steps.append({"method": "narrow", "channels": share, "multiple": MULTIPLE})
    # The recovery follows a cut alone, and does not train on a grid of several types.
    if type == "q4_0" and (spared or not on_grid or not (gone or share)):
        steps += _fitted(cut, spared)
    exported: dict[str, Any] = {"method": "gguf", "type": type}
    steps.append(exported | ({"types": {f"*.{kind}.weight": "q8_0" for kind in spared}} if spared else {}))
    return tuple(steps)


def _fitted(cut: Shape, spared: Sequence[str]) -> list[dict[str, Any]]:
    """gptq on q4_0's grid; rows that its blocks do not fill stay f16 in the file, and are not fitted."""
    sizes = cut.matrices()
    left = [*spared, *(kind for kind in sizes if kind not in spared and sizes[kind][1] % MULTIPLE)]
    if len(left) == len(sizes):
        return []
    return [{"method": "gptq", "grid": "q4_0"} | ({"skip": [f"*.{kind}" for kind in left]} if left else {})]
