"""A student's configuration and tensors under GGUF's names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from supertiny.compress.exporters._student_files import tensors_of
from supertiny.core.errors import UserError

_MIXTURES = {
    "MixtralForCausalLM": "llama",
    "OlmoeForCausalLM": "olmoe",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3MoeForCausalLM": "qwen3moe",
}
ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", **_MIXTURES}
_RENORMALISED = {"olmoe": False, "qwen2moe": False, "qwen3moe": True}  # whether llama.cpp lets experts' shares sum to 1
_MIXTRAL = ".block_sparse_moe.experts."
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


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
    if config["architectures"][0] in _MIXTURES:
        _write_mixture(writer, config, student)


def _write_mixture(writer: Any, config: Mapping[str, Any], student: Path) -> None:
    """Adds what it must know of experts. Raises UserError where llama.cpp would refuse it or compute otherwise."""
    architecture = ARCHITECTURES[config["architectures"][0]]
    fewer = (config.get("num_key_value_heads") or config["num_attention_heads"]) < config["num_attention_heads"]
    problems = {
        "blocks without experts beside others": config.get("mlp_only_layers")
        or config.get("decoder_sparse_step", 1) != 1,
        "clipped queries (clip_qkv)": config.get("clip_qkv") is not None,
        "a sliding window": _slides(config),
        "biases of attention": config.get("attention_bias") and architecture != "qwen2moe",
        "fewer key-value heads": architecture == "olmoe" and fewer,
        "an output tied to the embedding": config.get("tie_word_embeddings") and architecture in ("olmoe", "qwen2moe"),
        f"norm_topk_prob {config.get('norm_topk_prob', False)}": architecture in _RENORMALISED
        and config.get("norm_topk_prob", False) != _RENORMALISED[architecture],
    }
    if found := [name for name, there in problems.items() if there]:
        raise UserError(f"{student}: gguf cannot write {' or '.join(found)} of {architecture}", "llama.cpp has no such")
    writer.add_expert_count(config.get("num_local_experts") or config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if architecture in ("qwen2moe", "qwen3moe"):
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if architecture == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _slides(config: Mapping[str, Any]) -> bool:
    """Whether a block sees fewer places than the model can read."""
    window = config.get("sliding_window")
    some = config.get("use_sliding_window", config["architectures"][0] == "MixtralForCausalLM")
    return bool(some and window is not None and window < config["max_position_embeddings"])


def gguf_tensors(student: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, str, np.ndarray[Any, Any]]]:
    """(GGUF name, student's name, float32 array) of every tensor, embedding first, blocks in order."""
    import gguf

    architecture = ARCHITECTURES[config["architectures"][0]]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    heads_of: dict[str, int] = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    found: dict[str, tuple[str, list[Callable[[], Any]], int]] = {}
    for key, reads in _joined(tensors_of(student, config)).items():
        known = key.removeprefix("model.").replace("block_sparse_moe", "feed_forward") if _MIXTRAL in key else key
        new = names.get_name(known, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise UserError(f"{student}: gguf has no place for the tensor {key}")
        rotated = heads_of.get(key.split(".")[-2], 0) if architecture == "llama" else 0
        found[new] = key, reads, rotated
    for name in sorted(
        found, key=lambda n: (n != "token_embd.weight", [int(p) if p.isdigit() else 0 for p in n.split(".")], n)
    ):
        key, reads, rotated = found[name]
        arrays = [_array(read(), rotated) for read in reads]
        yield name, key, np.stack(arrays) if ".experts." in key else arrays[0]


def _joined(tensors: Mapping[str, Callable[[], Any]]) -> dict[str, list[Callable[[], Any]]]:
    """What reads a tensor, by its name; of a mixture's experts one after the other, by a name without their number."""
    found = defaultdict[str, dict[int, Callable[[], Any]]](dict)
    for key, read in tensors.items():
        expert = _EXPERT.search(key)
        found[_EXPERT.sub(".experts.", key)][int(expert[1]) if expert else 0] = read
    return {key: [reads[number] for number in sorted(reads)] for key, reads in found.items()}


def _array(tensor: Any, rotated_heads: int) -> np.ndarray[Any, Any]:
    """Float32; llama.cpp rotates neighbouring pairs, transformers halves: rows of q and k change places."""
    array: np.ndarray[Any, Any] = tensor.float().numpy()
    if not rotated_heads:
        return array
    half = array.shape[0] // rotated_heads // 2
    return array.reshape(rotated_heads, 2, half, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
