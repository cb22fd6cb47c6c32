"""What the steps ask of the student's shape, compared with what its file says, before anything is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supertiny.compress.plans import Shape
from supertiny.compress.settings import Settings
from supertiny.compress.steps import name_of, steps_of
from supertiny.core.errors import UserError
from supertiny.core.models import catalogue, status, store
from supertiny.engines._gguf_file import GgufHeader, read_header

_SAME_ROWS = ("keep", "drop_blocks", "trim_vocabulary", "awq", "smoothquant", "rotate")  # reshapers that keep lengths
_MIXING = ("awq", "smoothquant", "rotate", "factorize")  # reshapers after which weights lie on no grid of before
# By the type that weights were stored in: types that keep less than half of small changes, as the exporter packs them.
_UNDOING = {
    "q4_0": ("q4_0", "q4_k", "q5_0"), "q4_1": ("q4_1", "q4_k", "q5_k"), "q4_k": ("q4_k", "q4_1", "q5_k"),
    "q5_0": ("q5_0",), "q5_1": ("q5_1", "q5_k"), "q5_k": ("q5_k",), "q6_k": ("q6_k",),
}  # fmt: skip


def mistakes(blocks: Sequence[Any], student: str) -> list[UserError]:
    """More blocks dropped than there are, and groups that do not fill rows, where the student's file is here.

    What stands after a step that may change lengths is left aside. Raises UserError where the file is broken.
    """
    errors, gone = list[UserError](), 0
    for number, (block, step) in enumerate(zip(blocks, steps_of(blocks), strict=True)):
        spot, method = f"compress.steps.{number}.{name_of(block)}", step.method
        if step.family == "reshapers" and name_of(block) not in _SAME_ROWS:
            break
        dropped = getattr(method, "blocks", 0) or 0
        # What is skipped may be what does not fit; llama.cpp's types fit all rows, and int8 has a scale for each.
        fits: Any = step.skip or getattr(method, "grid", "") or getattr(method, "type", "") == "int8"
        group = 0 if fits else getattr(method, "group", 0)
        shape = _shape(student) if dropped or group else None
        if shape is None:
            continue
        gone += dropped
        if dropped and gone >= shape.blocks:
            errors.append(UserError(f"{spot}: cannot drop {gone} of {shape.blocks} blocks", "leave at least one"))
        rows = dict.fromkeys((shape.width, shape.queries, shape.channels))
        if group and any(row % group for row in rows):
            sizes = [str(size) for size in range(8, 257) if not any(row % size for row in rows)]
            problem = f"{spot}: groups of {group} do not fill rows of {' and '.join(map(str, rows))}"
            errors.append(UserError(problem, f"these divide them: {', '.join(sizes)}" if sizes else ""))
    return errors


def taken_back(settings: Settings, student: str, learned_on: str) -> str:
    """Advice where rounding would undo what the student learns, as it starts from a file of such a grid; else "".

    Training moves most weights by less than half a step of the grid that they were stored on, and rounding moves them
    back: of what a student learned from a q4_1 file, 7 % is left in q4_1 and 91 % in q4_0. `learned_on` is the type
    that it is taught with. Raises UserError where its file is broken.
    """
    shrinks = False
    for block, step in zip(settings.steps, steps_of(settings.steps), strict=True):
        if name_of(block) in _MIXING:
            return ""
        if step.family in ("quantizers", "exporters"):
            break
        shrinks |= "tokenizer" not in step.needs
    kind = str(getattr(step.method, "grid", "") or getattr(step.method, "type", ""))
    taught = shrinks and step.family == "exporters" and settings.recovery and settings.quantization_aware
    known = any(kind in undone for undone in _UNDOING.values()) and not getattr(step.method, "types", None)
    header = _header(student) if known and not taught and kind != learned_on else None
    kinds = Counter(header.tensor_types if header else {})
    stored = max(kinds, key=lambda name: (name != "F32", kinds[name]), default="").lower()
    if kind not in _UNDOING.get(stored, ()):
        return ""
    told = (
        f"{kind} undoes most of what the student learns: {student} was stored in {stored}, and weights that moved less"
    )
    return f"{told} than half a step go back; {'q4_1' if stored == 'q4_0' else 'q4_0'} or q8_0 keeps what is learned"


def _header(student: str) -> GgufHeader | None:
    """Of a model of the catalogue; None where it is none, or not here. Raises UserError where the file is broken."""
    if student not in catalogue() or status(student) not in ("verified", "unverified"):
        return None
    return read_header(store() / f"{student}.gguf")


def _shape(student: str) -> Shape | None:
    """Of a Hugging Face folder or a model of the catalogue; None where it is not here, or does not say."""
    if (Path(student) / "config.json").is_file():
        return Shape.of(Path(student))
    header = _header(student)
    if header is None:
        return None
    try:
        width, heads, blocks, channels = (
            int(header.metadata[f"{header.architecture}.{key}"])
            for key in ("embedding_length", "attention.head_count", "block_count", "feed_forward_length")
        )
        queries = heads * int(header.metadata.get(f"{header.architecture}.attention.key_length", width // heads))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return Shape(blocks, width, channels, queries, keys=0, vocabulary=0, tied=True)  # what is 0 is no row's length
