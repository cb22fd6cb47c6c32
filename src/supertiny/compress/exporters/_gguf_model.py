"""A student's configuration and tensors under GGUF's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from supertiny.compress.exporters._student_files import tensors_of
from supertiny.core.errors import UserError

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}


def write_shape(writer: Any, config: Mapping[str, Any], student: Path) -> None:
    """Adds what a runtime must know of the network. Raises UserError for scaled rotary positions."""
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


def gguf_tensors(student: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, str, np.ndarray[Any, Any]]]:
    """(GGUF name, student's name, float32 array) of every tensor, embedding first, blocks in order."""
    import gguf

    architecture = ARCHITECTURES[config["architectures"][0]]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    heads_of: dict[str, int] = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    found: dict[str, tuple[str, Callable[[], Any], int]] = {}
    for key, read in tensors_of(student, config).items():
        new = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise UserError(f"{student}: gguf has no place for the tensor {key}")
        rotated = heads_of.get(key.split(".")[-2], 0) if architecture == "llama" else 0
        found[new] = key, read, rotated
    for name in sorted(
        found, key=lambda n: (n != "token_embd.weight", [int(p) if p.isdigit() else 0 for p in n.split(".")], n)
    ):
        key, read, rotated = found[name]
        yield name, key, _array(read(), rotated)


def _array(tensor: Any, rotated_heads: int) -> np.ndarray[Any, Any]:
    """Float32; llama.cpp rotates neighbouring pairs, transformers halves: rows of q and k change places."""
    array: np.ndarray[Any, Any] = tensor.float().numpy()
    if not rotated_heads:
        return array
    half = array.shape[0] // rotated_heads // 2
    return array.reshape(rotated_heads, 2, half, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
