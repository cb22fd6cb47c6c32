"""What a GGUF file says of itself, read from its header without loading a tensor."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from supertiny.core.errors import UserError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_KEPT = 64  # longer arrays (vocabularies, merges) are skipped


@dataclass(frozen=True)
class GgufHeader:
    """Metadata (without long arrays), and per tensor type its number of tensors."""

    metadata: Mapping[str, Any]
    tensor_types: Mapping[str, int]
    bytes: int
    """The length that a whole file has."""

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))


def read_header(path: Path) -> GgufHeader:
    """Raises UserError naming the file where it is missing, not GGUF, broken or truncated."""
    if not path.is_file():
        raise UserError(f"{path} is not there", "give the path of a GGUF file or the name of a model in the catalogue")
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"{path} is not a GGUF file")
            header = _parse(file)
    except (struct.error, UnicodeDecodeError, KeyError, ValueError, OverflowError, MemoryError) as error:
        raise UserError(
            f"{path}: its GGUF header is broken or cut short ({error})", "fetch or export it again"
        ) from None
    if path.stat().st_size < header.bytes:
        lacking = header.bytes - path.stat().st_size
        raise UserError(
            f"{path} is truncated: {lacking} of {header.bytes} bytes are missing", "fetch or export it again"
        )
    return header


def checked(
    path: Path, engine: str, architectures: Collection[str], types: Collection[str] | None = None
) -> GgufHeader:
    """The header of a file that the engine can open; UserError says what it could open where it cannot."""
    header = read_header(path)
    if header.architecture not in architectures:
        known = ", ".join(sorted(architectures))
        others = "; the llama_cpp engine opens others" if types is not None else ""  # who trains needs more than that
        raise UserError(
            f"{path}: {engine} cannot open architecture {header.architecture!r}", f"it opens {known}{others}"
        )
    strange = sorted(set(header.tensor_types) - set(types)) if types is not None else []
    if types is not None and strange:
        raise UserError(
            f"{path}: {engine} cannot read tensors of type {', '.join(strange)}",
            f"it reads {', '.join(sorted(types))}; the llama_cpp engine opens the others",
        )
    return header


def _parse(file: BinaryIO) -> GgufHeader:
    import gguf

    version, tensors, entries = _unpack(file, "IQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    metadata = {}
    for _ in range(entries):
        key = _string(file).decode()
        (kind,) = _unpack(file, "I")
        metadata[key] = _value(file, kind)
    counts: Counter[str] = Counter()
    end = 0
    for _ in range(tensors):
        _string(file)
        (dimensions,) = _unpack(file, "I")
        shape = _unpack(file, "Q" * dimensions)
        kind, offset = _unpack(file, "IQ")
        quantization = gguf.GGMLQuantizationType(kind)
        counts[quantization.name] += 1
        block, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
        elements = 1
        for length in shape:
            elements *= length
        end = max(end, offset + elements // block * block_bytes)
    alignment = int(metadata.get("general.alignment", 32))
    data = -(-file.tell() // alignment) * alignment
    return GgufHeader(metadata, dict(counts), data + end)


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    layout = "<" + layout
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _string(file: BinaryIO) -> bytes:
    (length,) = _unpack(file, "Q")
    if length > 1 << 24:
        raise ValueError(f"a text of {length} bytes")
    return file.read(length)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file).decode("utf-8", "replace")
    if kind != _ARRAY:
        return _unpack(file, _SCALARS[kind])[0]
    inner, length = _unpack(file, "IQ")
    if length > 1 << 28:
        raise ValueError(f"an array of {length} entries")
    if inner not in (_STRING, _ARRAY) and length > _LONGEST_KEPT:
        file.seek(length * struct.calcsize("<" + _SCALARS[inner]), 1)
        return None
    values = []
    for _ in range(length):
        value = _value(file, inner)
        if length <= _LONGEST_KEPT:
            values.append(value)
    return values or None
