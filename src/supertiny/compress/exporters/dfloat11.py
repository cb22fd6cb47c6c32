"""bfloat16 weights with their exponents as Huffman codes: about 30 % smaller at rest, the same bits when read.

Paper: Zhang et al., 70% Size, 100% Accuracy: Lossless LLM Compression via Dynamic-Length Float, 2025, arXiv:2504.11651.
Use when: a model must be stored or sent with every bit as it is.
Differs from the paper: it is unpacked when it is read, by numpy, not on a GPU before each block; float32 weights are
taken too, and cost nothing more where bfloat16 would hold them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from supertiny.compress.exporters._float_parts import join, parts_of
from supertiny.compress.exporters._student_files import copy_beside, json_in, read_safetensors, tensors_of
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, written_whole

_FILE = "model.safetensors"
_MARK = "dfloat11"


@dataclass(frozen=True)
class Dfloat11:
    """Every tensor has a code of its own, so that single ones can be read; small ones are stored as they are."""

    smallest: Annotated[int, Field(ge=0)] = 4096
    """Tensors of fewer weights are stored plainly."""

    def export(self, student: Path, folder: Path) -> Mapping[str, Any]:
        """Writes model.safetensors with the packed tensors, and copies configuration and tokenizer.

        Gives type, number of weights, and `ratio`: bytes of the packed weights to those of the student's.
        Raises UserError where a file is missing or broken.
        """
        from safetensors.torch import save_file

        stored: dict[str, torch.Tensor] = {}
        told: dict[str, Any] = {}
        weights = plain = 0
        for name, read in sorted(tensors_of(student, read_json(student / "config.json")).items()):
            tensor = read().contiguous()
            weights, plain = weights + tensor.numel(), plain + tensor.nbytes
            parts, told[name] = parts_of(tensor, tensor.numel() >= self.smallest)
            stored |= {f"{name}.{part}": value for part, value in parts.items()}
        copy_beside(student, folder)
        with written_whole(folder / _FILE) as beside:
            save_file(stored, beside, metadata={_MARK: json.dumps(told)})
        return {"type": "dfloat11", "parameters": weights, "ratio": (folder / _FILE).stat().st_size / max(1, plain)}

    @staticmethod
    def read(path: Path) -> dict[str, torch.Tensor]:
        """Tensors by name, bit for bit those that were exported, from the file or its folder.

        Raises UserError where the file is no such file, cut short, or changed in any bit.
        """
        path = path / _FILE if path.is_dir() else path
        found, metadata = read_safetensors(path)
        readers = dict(found)
        told = json_in(metadata.get(_MARK), path, _MARK)
        tensors = {}
        for name, about in told.items():
            parts = {key[len(name) + 1 :]: read for key, read in readers.items() if key.startswith(f"{name}.")}
            try:
                tensors[name] = join(parts, about)
            except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
                raise UserError(f"{path}: {name} is broken ({error})", "export or fetch it again") from None
        return tensors

    @classmethod
    def restore(cls, artifact: Path, folder: Path) -> Path:
        """A stock folder with the weights as they were. Raises UserError where the artifact is broken."""
        from safetensors.torch import save_file

        tensors = cls.read(artifact)
        copy_beside(artifact, folder)
        with written_whole(folder / _FILE) as beside:
            save_file(tensors, beside, metadata={"format": "pt"})
        return folder
