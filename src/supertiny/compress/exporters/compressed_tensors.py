"""A folder of packed integers in the compressed-tensors format, which vLLM and transformers open.

Use when: the model is to be served in batches on GPUs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from supertiny.compress.exporters._packed_integers import SUFFIXES, pack, steps_and_scales, unpack
from supertiny.compress.exporters._student_files import copy_beside, read_config, read_safetensors, tensors_of
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, write_json, written_whole

_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
_FILE = "model.safetensors"


@dataclass(frozen=True)
class CompressedTensors:
    """Block matrices become integers with a scale per group or per row; embedding and output stay as they are.

    Weights that stand on such a grid already, as gguf's q4_0 has in groups of 32, keep their values exactly.
    """

    type: Literal["int4", "int8"] = "int4"
    """Integers of a weight: int4 has a scale per `group`, int8 one per row (the format's strategy `channel`)."""
    group: Literal[32, 64, 128] = 32
    """Weights of a row that share a scale with int4; it must divide the length of every row."""
    precision: Literal["float16", "bfloat16"] = "float16"
    """How scales and all other tensors are stored; float16 scales are those of llama.cpp's grids."""

    def export(self, student: Path, folder: Path) -> Mapping[str, Any]:
        """Writes a Hugging Face folder: model.safetensors, config.json that says how to read it, the tokenizer.

        Gives its type and number of weights. Raises UserError where the architecture is not one of those that it
        writes, the group does not divide a row, or a file is broken.
        """
        from safetensors.torch import save_file

        config = read_config(student, "compressed_tensors", _ARCHITECTURES)
        weights = 0
        stored: dict[str, torch.Tensor] = {}
        for name, read in sorted(tensors_of(student, config).items()):
            tensor = read()
            weights += tensor.numel()
            stored.update(self._stored(name, tensor))
        copy_beside(student, folder)
        with written_whole(folder / _FILE) as beside:
            save_file(stored, beside, metadata={"format": "pt"})
        config = {**config, "dtype": self.precision, "quantization_config": self._told()}
        config.pop("torch_dtype", None)
        write_json(folder / "config.json", config)
        return {"type": self.type, "parameters": weights}

    def larger(self) -> list[CompressedTensors]:
        """The same export with eight bits, if it has four."""
        return [CompressedTensors("int8", self.group, self.precision)] if self.type == "int4" else []

    @staticmethod
    def restore(artifact: Path, folder: Path) -> Path:
        """A stock folder of plain float32 weights: the values that the artifact holds. Raises UserError if broken."""
        from safetensors.torch import save_file

        config = read_json(artifact / "config.json")
        groups = (config.pop("quantization_config", None) or {}).get("config_groups")
        if not groups:
            raise UserError(f"{artifact} was not written by compressed_tensors", "its config.json tells of no groups")
        bits = int(groups["group_0"]["weights"]["num_bits"])
        plain = dict(_plain(artifact / _FILE, bits))
        copy_beside(artifact, folder)
        with written_whole(folder / _FILE) as beside:
            save_file(plain, beside, metadata={"format": "pt"})
        write_json(folder / "config.json", {**config, "dtype": "float32"})
        return folder

    def _stored(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        kind = getattr(torch, self.precision)
        if not (name.endswith("_proj.weight") and tensor.ndim == 2):
            yield name, tensor.to(kind).contiguous()
            return
        width = tensor.shape[1]
        group = self.group if self.type == "int4" else width
        if width % group:
            raise UserError(f"compressed_tensors: a group of {group} does not divide the {width} inputs of {name}")
        bits = int(self.type[3:])
        steps, scales = steps_and_scales(tensor, bits, group, kind)
        for suffix, part in zip(SUFFIXES, (pack(steps, bits), scales, torch.tensor(tensor.shape)), strict=True):
            yield f"{name}_{suffix}", part

    def _told(self) -> dict[str, Any]:
        """The format's own description, as its documents give it."""
        four = self.type == "int4"
        weights = {
            "num_bits": 4 if four else 8,
            "type": "int",
            "symmetric": True,
            "strategy": "group" if four else "channel",
            "group_size": self.group if four else None,
            "dynamic": False,
            "actorder": None,
        }
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }


def _plain(path: Path, bits: int) -> Iterator[tuple[str, torch.Tensor]]:
    found, _ = read_safetensors(path)
    tensors = dict(found)
    for name, read in tensors.items():
        owner, _, last = name.rpartition("weight_")
        if last not in SUFFIXES:
            yield name, read().float()
        elif last == "packed":
            try:
                words, scales, shape = (tensors[f"{owner}weight_{suffix}"]() for suffix in SUFFIXES)
                yield f"{owner}weight", unpack(words, scales, shape, bits)
            except (KeyError, ValueError, RuntimeError) as error:
                text = json.dumps(str(error))
                raise UserError(f"{path}: {owner}weight cannot be unpacked ({text})", "export it again") from None
