"""Stock models of four blocks with random weights, and calibration batches for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from supertiny.compress.reshapers._task_loss import gated, only_blocks
from supertiny.core.methods import build
from supertiny.training.lessons import Batch, Lesson, collate

VOCABULARY = 97
_CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def tiny(seed: int = 0, kind: str = "llama", **settings: Any) -> Any:
    """Width 64, 96 channels, 4 heads of 16 on 2 key-value heads; Llama is tied, Qwen has biases or norms of heads."""
    torch.manual_seed(seed)
    config, model = _CLASSES[kind]
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": kind == "llama",
        **({"head_dim": 16} if kind == "qwen3" else {}),
    }
    made = model(config(**{**shape, **settings})).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.1)
            elif "norm" in name:
                weight.uniform_(0.5, 1.5)
    return made


EXPERTS = 4
MIXTURES: dict[str, Any] = {
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "olmoe": (OlmoeConfig, OlmoeForCausalLM),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
}


def mixture(kind: str = "qwen3_moe", **settings: Any) -> Any:
    """Two blocks of width 32 with four experts of 24 channels, of which two answer."""
    torch.manual_seed(3)
    config, model = MIXTURES[kind]
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 24,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": EXPERTS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "norm_topk_prob": kind == "qwen3_moe",
        "initializer_range": 0.2,
    }
    return model(config(**{**shape, **settings})).eval()


def calibration(rows: int = 4, vocabulary: int = VOCABULARY) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    lengths = (9, 12, 7, 10)
    ids = [
        torch.randint(0, vocabulary, (lengths[row % 4],), generator=generator).tolist()  # of unequal length: padded
        for row in range(rows)
    ]
    lessons = [Lesson(tuple(row), len(row) // 2) for row in ids]
    return [collate(lessons[place : place + 2], 0) for place in range(0, rows, 2)]


def taught(model: Any, batches: list[Batch], steps: int = 40) -> Any:
    """The model after it has learned the batches, so that its parts have something to lose."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        loss_on(model, batches[step % len(batches)]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
    return model


def loss_on(model: Any, batch: Batch) -> torch.Tensor:
    logits = model(batch.ids, attention_mask=batch.mask, use_cache=False).logits[batch.wanted]
    return torch.nn.functional.cross_entropy(logits, batch.targets)


def total_loss(model: Any, batches: list[Batch]) -> float:
    with torch.no_grad():
        return sum(float(loss_on(model, batch)) for batch in batches) / len(batches)


def logits_of(model: Any) -> torch.Tensor:
    """(1, 12, vocabulary) after tokens that no calibration row has in this order."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.arange(20, 32)[None], use_cache=False).logits
    return logits


def distinct_weights(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def summed_loss(model: Any, batches: list[Batch]) -> float:
    return sum(loss_on(model, batch).item() * len(batch.targets) for batch in batches)


@cache
def _taught() -> Any:
    return taught(tiny(), calibration(8))


def knowing() -> tuple[Any, list[Batch]]:
    """A model that has learned its rows by heart, and the rows."""
    return copy.deepcopy(_taught()), calibration(8)


def some_channels(blocks: int, channels: int, share: float) -> torch.Tensor:
    """(blocks, channels) true for a share of each block's channels."""
    noise = torch.rand((blocks, channels), generator=torch.Generator().manual_seed(3))
    return noise.argsort(1) < round(share * channels)


def silence(model: Any, dead: torch.Tensor) -> None:
    """Lets the channels do nothing."""
    with torch.no_grad():
        for block, row in zip(model.model.layers, dead, strict=True):
            block.mlp.down_proj.weight[:, row] = 0


def half_used(blocks: int, share: float = 0.5) -> tuple[Any, torch.Tensor, list[Batch]]:
    """A model of 32 channels that has learned its rows without a share of them; which they are; the rows."""
    model, batches = tiny(num_hidden_layers=blocks, intermediate_size=32), calibration(4)
    dead = some_channels(blocks, 32, share)
    silence(model, dead)
    with gated(model, {"channels": (~dead).float()}):
        taught(model, batches)
    silence(model, dead)
    return model, dead, batches


def share_alive(scores: torch.Tensor, dead: torch.Tensor) -> float:
    """Of the channels with the highest scores, as many as are alive, those that are."""
    kept = scores.argsort(1, descending=True)[:, : int((~dead[0]).sum())]
    return float((~dead).gather(1, kept).float().mean())


def idle_blocks(model: Any, places: Sequence[int], batches: list[Batch]) -> Any:
    """The model after it has learned the batches without these blocks, which then do nothing."""
    with only_blocks(model, [place for place in range(len(model.model.layers)) if place not in places]):
        taught(model, batches, 20)
    with torch.no_grad():
        for block in (model.model.layers[place] for place in places):
            for part in (block.self_attn.o_proj, block.mlp.down_proj):
                part.weight.zero_()
    return model


def reshaped(name: str, model: Any, batches: list[Batch] | None = None, **settings: Any) -> Any:
    return build("reshapers", {"method": name, **settings}).reshape(model, batches or calibration())
