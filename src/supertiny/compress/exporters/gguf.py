"""One GGUF file that llama.cpp, Ollama and OpenVINO GenAI open: matrices in blocks, embeddings kept higher.

Use when: the model is to run on CPUs and small machines. Mixtures of experts (Mixtral, OLMoE, Qwen2-MoE, Qwen3-MoE)
open in llama.cpp and not in OpenVINO: set `compress.engine` and `serve.engine` to llama_cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from supertiny.compress.exporters._gguf_tokenizer import write_tokenizer
from supertiny.compress.exporters._student_files import read_config
from supertiny.core.errors import UserError, nearest_word
from supertiny.core.files import written_whole

if TYPE_CHECKING:
    import numpy as np

Type = Literal["q4_0", "q4_k", "q4_1", "q5_0", "q5_k", "q5_1", "q6_k", "q8_0", "f16", "bf16"]
# Bits of a weight, llama.cpp's number of a file of this type, and what rows take whose length is no multiple of 256.
_BITS = {"q4_0": 4.5, "q4_k": 4.5, "q4_1": 5, "q5_0": 5.5, "q5_k": 5.5, "q5_1": 6, "q6_k": 6.5625, "q8_0": 8.5}
_BITS |= {"f16": 16, "bf16": 16}
_FILE_TYPES = {"q4_0": 2, "q4_k": 15, "q4_1": 3, "q5_0": 8, "q5_k": 17, "q5_1": 9, "q6_k": 18, "q8_0": 7}
_FILE_TYPES |= {"f16": 1, "bf16": 32}
_SHORTER = {"q4_k": "q4_1", "q5_k": "q5_1", "q6_k": "q8_0"}
_LADDER: tuple[Type, ...] = ("q4_0", "q4_1", "q8_0", "f16")  # types that every runtime opens
_OUTER = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Gguf:
    """Matrices are stored as `type`, the token embedding and the output as `embedding`, vectors as float32."""

    type: Type = "q4_0"
    """Bits of a weight: q4_0 and q4_k 4.5, q4_1 5, q5_0 and q5_k 5.5, q5_1 6, q6_k 6.6, q8_0 8.5, f16 and bf16 16.

    Rows that are no multiple of 32 stay f16; rows that are no multiple of 256 take q4_1, q5_1, q8_0 for the K types.
    OpenVINO opens q4_0, q4_1, q4_k, q6_k, q8_0 and f16; llama.cpp opens all.
    """
    embedding: Type = "q8_0"
    """How embedding and output are stored, unless `type` is larger."""
    types: Mapping[str, Type] = field(default_factory=dict)
    """Types of single matrices: a name of GGUF or of the student, where `*` stands for anything; the last match counts.

    For example `{"*down_proj.weight": q6_k, "blk.0.*": q8_0}`.
    """

    def export(self, student: Path, folder: Path) -> Mapping[str, Any]:
        """Writes `folder/model.gguf`, whole or not at all; gives its type and number of weights.

        A block that lies on its type's grid already is stored with every value as it is. Raises UserError where the
        architecture is not one of those that it writes, a file is broken, or a name in `types` fits no matrix.
        """
        import gguf

        from supertiny.compress.exporters._gguf_model import ARCHITECTURES, write_shape

        config = read_config(student, "gguf", ARCHITECTURES)
        weights = 0
        with written_whole(folder / "model.gguf") as beside:
            writer = gguf.GGUFWriter(beside, ARCHITECTURES[config["architectures"][0]])
            write_shape(writer, config, student)
            write_tokenizer(writer, student, config["vocab_size"])
            writer.add_file_type(_FILE_TYPES[self.type])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for key, tensor, kind in self._typed(student, config):
                weights += tensor.size
                raw = gguf.GGMLQuantizationType[kind.upper()]
                writer.add_tensor(key, _stored(tensor, kind), raw_dtype=None if kind in ("f32", "f16") else raw)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        return {"type": self.type, "parameters": weights}

    def larger(self) -> list[Gguf]:
        """The same export with each larger type that all runtimes open, in order; single types never get smaller."""
        return [
            replace(self, type=kind, types={name: own for name, own in self.types.items() if _BITS[own] > _BITS[kind]})
            for kind in _LADDER
            if _BITS[kind] > _BITS[self.type]
        ]

    def _typed(self, student: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any], str]]:
        from supertiny.compress.exporters._gguf_model import gguf_tensors

        used: set[str] = set()
        names: list[str] = []
        for key, name, tensor in gguf_tensors(student, config):
            fitting = [own for own in self.types if fnmatchcase(key, own) or fnmatchcase(name, own)]
            used |= set() if _is_whole(key, tensor) else set(fitting)
            names += [] if _is_whole(key, tensor) else [key, name]
            yield key, tensor, self._type_of(key, tensor, self.types[fitting[-1]] if fitting else None)
        for own in self.types:
            if own not in used:
                raise UserError(f"gguf.types: no matrix of {student} is called {own!r}", nearest_word(own, names))

    def _type_of(self, key: str, tensor: np.ndarray[Any, Any], own: str | None) -> str:
        if _is_whole(key, tensor):
            return "f32"
        kind: str = own or (max(self.type, self.embedding, key=_BITS.__getitem__) if key in _OUTER else self.type)
        if tensor.shape[-1] % 256:
            kind = _SHORTER.get(kind, kind)
        return kind if tensor.shape[-1] % 32 == 0 or kind == "bf16" else "f16"


def _is_whole(key: str, tensor: np.ndarray[Any, Any]) -> bool:
    """Whether a tensor is float32 whatever is asked for: vectors, and the routers of experts."""
    return tensor.ndim == 1 or ".ffn_gate_inp" in key


def _stored(tensor: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    import gguf
    import numpy as np

    from supertiny.compress.exporters import _gguf_grid, _gguf_k

    if kind in ("f32", "f16"):
        return tensor.astype(np.float32 if kind == "f32" else np.float16)
    if kind == "bf16":
        plain: np.ndarray[Any, Any] = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.BF16)
        return plain
    pack = _gguf_k.packed if kind.endswith("_k") else _gguf_grid.packed
    return pack(tensor, kind)
