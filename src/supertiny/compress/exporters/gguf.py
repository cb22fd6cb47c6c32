"""One GGUF file that llama.cpp, Ollama and OpenVINO GenAI open: matrices in blocks of 32, embeddings kept higher.

Use when: the model is to run on CPUs and small machines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from supertiny.compress.exporters._gguf_tokenizer import write_tokenizer
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, written_whole

if TYPE_CHECKING:
    import numpy as np

Type = Literal["q4_0", "q4_1", "q8_0", "f16"]
_ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
_BLOCK = 32


@dataclass(frozen=True)
class Gguf:
    """Matrices are stored as `type`, the token embedding and the output as `embedding`, vectors as float32."""

    type: Type = "q4_0"
    """Bits of a weight: q4_0 4.5, q4_1 5, q8_0 8.5, f16 16. Matrices whose rows are no multiple of 32 stay f16."""
    embedding: Type = "q8_0"
    """How embedding and output are stored, unless `type` is larger."""

    def export(self, student: Path, folder: Path) -> Mapping[str, Any]:
        """Writes `folder/model.gguf`, whole or not at all; gives its type and number of weights.

        Raises UserError where the architecture is not one of those that it writes.
        """
        import gguf

        config = read_json(student / "config.json")
        name = (config.get("architectures") or ["unknown"])[0]
        if name not in _ARCHITECTURES:
            raise UserError(f"{student}: gguf cannot write {name}", f"it writes {', '.join(_ARCHITECTURES)}")
        weights = 0
        with written_whole(folder / "model.gguf") as beside:
            writer = gguf.GGUFWriter(beside, _ARCHITECTURES[name])
            _write_shape(writer, config, student)
            write_tokenizer(writer, student, config["vocab_size"])
            kind = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "f16": 1}[self.type]
            writer.add_file_type(kind)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for key, tensor in _tensors(student, config, _ARCHITECTURES[name]):
                weights += tensor.size
                _add(writer, key, tensor, self._type_of(key, tensor))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        return {"type": self.type, "parameters": weights}

    def larger(self) -> list[Gguf]:
        """The same export with each larger type, in order."""
        order: list[Type] = ["q4_0", "q4_1", "q8_0", "f16"]
        return [Gguf(type, self.embedding) for type in order[order.index(self.type) + 1 :]]

    def _type_of(self, key: str, tensor: np.ndarray[Any, Any]) -> str:
        if tensor.ndim == 1:
            return "f32"
        outer = key in ("token_embd.weight", "output.weight")
        order = ("q4_0", "q4_1", "q8_0", "f16")
        kind = max(self.type, self.embedding, key=order.index) if outer else self.type
        return kind if tensor.shape[-1] % _BLOCK == 0 else "f16"


def _add(writer: Any, key: str, tensor: np.ndarray[Any, Any], kind: str) -> None:
    import gguf
    import numpy as np

    if kind in ("f32", "f16"):
        writer.add_tensor(key, tensor.astype(np.float32 if kind == "f32" else np.float16))
        return
    raw = gguf.GGMLQuantizationType[kind.upper()]
    writer.add_tensor(key, gguf.quants.quantize(tensor, raw), raw_dtype=raw)


def _write_shape(writer: Any, config: Mapping[str, Any], student: Path) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"{student}: gguf cannot write scaled rotary positions ({rope})", "use a model without them")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_width = config.get("head_dim") or width // heads
    writer.add_name(str(config.get("_name_or_path") or student.name))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10000.0))))
    writer.add_rope_dimension_count(head_width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if head_width != width // heads:
        writer.add_key_length(head_width)
        writer.add_value_length(head_width)


def _tensors(student: Path, config: Mapping[str, Any], architecture: str) -> Any:
    """(GGUF name, float32 array) of every tensor, embedding first, blocks in order."""
    import gguf
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    heads_of: dict[str, int] = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    found: dict[str, Callable[[], Any]] = {}
    for path in sorted(student.glob("*.safetensors")):
        file = safe_open(path, "pt")
        for key in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118 - the file is no mapping
            if key == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue
            new = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if new is None:
                raise UserError(f"{student}: gguf has no place for the tensor {key}")
            part = key.split(".")[-2]
            rotated = heads_of.get(part, 0) if architecture == "llama" else 0
            found[new] = lambda f=file, k=key, n=rotated: _array(f.get_tensor(k), n)  # type: ignore[misc]
    for name in sorted(
        found, key=lambda n: (n != "token_embd.weight", [int(p) if p.isdigit() else 0 for p in n.split(".")], n)
    ):
        yield name, found[name]()


def _array(tensor: Any, rotated_heads: int) -> np.ndarray[Any, Any]:
    """Float32; llama.cpp rotates neighbouring pairs, transformers halves: rows of q and k change places."""
    array: np.ndarray[Any, Any] = tensor.float().numpy()
    if not rotated_heads:
        return array
    half = array.shape[0] // rotated_heads // 2
    return array.reshape(rotated_heads, 2, half, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
