"""The walk over a model: what each matrix sees is what it sees in the whole model, and changes are passed on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from supertiny.compress.inputs import Inputs
from supertiny.compress.layers import SHARING, attached, blocks_of, change_matrices, walk
from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.training.lessons import Batch, Lesson, collate

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
KINDS: dict[str, Any] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 4}),
}


def tiny(kind: str = "llama", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config, model, more = KINDS[kind]
    return model(config(**SHAPE, **more)).eval()


def calibration(rows: int = 4, longest: int = 14) -> list[Batch]:
    draw = torch.Generator().manual_seed(5)
    lengths = [max(4, longest - 2 * (row % 4)) for row in range(rows)]
    lessons = [Lesson(tuple(torch.randint(0, 97, (n,), generator=draw).tolist()), n // 2) for n in lengths]
    return [collate(lessons[start : start + 2], 0) for start in range(0, rows, 2)]


def seen_in_the_whole(model: Any, names: list[str], batches: list[Batch]) -> dict[str, Inputs]:
    """Inputs of matrices as stock transformers runs the model."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    modules, handles = dict(model.named_modules()), []
    for name in names:
        handles.append(modules[name].register_forward_pre_hook(lambda m, given, n=name: seen[n].append(given[0])))
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    for handle in handles:
        handle.remove()
    masks = [batch.mask.bool() for batch in batches]
    return {n: Inputs.of(torch.cat([s[m] for s, m in zip(seen[n], masks, strict=True)])) for n in names}


@pytest.mark.parametrize("kind", KINDS)
def test_each_matrix_sees_what_it_sees_in_the_whole_model(kind: str) -> None:
    model, batches = tiny(kind), calibration()
    blocks = list(walk(model, batches, head=True))
    assert [block.place for block in blocks] == [0, 1, 2, 3]
    inputs = {name: seen for block in blocks for name, seen in block.inputs.items()}
    matrices = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(inputs) == matrices
    whole = seen_in_the_whole(model, sorted(matrices), batches)
    for name in matrices:
        assert inputs[name].count == sum(batch.tokens for batch in batches)
        torch.testing.assert_close(inputs[name].gram, whole[name].gram, atol=1e-5, rtol=1e-4)
    for block in blocks[:3]:
        for first, *others in SHARING:
            prefix = f"model.layers.{block.place}."
            assert all(block.inputs[prefix + other] is block.inputs[prefix + first] for other in others)
    assert next(walk(model, batches, gram=False)).inputs["model.layers.0.mlp.up_proj"].gram is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_sees_the_blocks_before_it_changed(kind: str) -> None:
    model, batches, seen = tiny(kind), calibration(), {}

    def change(name: str, weight: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        seen[name] = inputs
        return weight.round(decimals=1)

    ticks: list[tuple[int, int]] = []
    embedding = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings().weight.detach().clone()
    change_matrices(model, batches, change, tick=lambda done, of: ticks.append((done, of)))
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert torch.equal(model.get_output_embeddings().weight, head)
    names = [f"model.layers.{place}.self_attn.q_proj" for place in range(3)]
    whole = seen_in_the_whole(model, names, batches)
    for name in names:
        torch.testing.assert_close(seen[name].gram, whole[name].gram, atol=1e-5, rtol=1e-4)
    for block in model.model.layers:
        weight = block.mlp.down_proj.weight
        assert torch.equal(weight, weight.round(decimals=1))


def test_the_head_is_changed_where_that_is_asked_for() -> None:
    model = tiny()
    changed = []
    change_matrices(model, calibration(), lambda n, w, i: changed.append(n) or w * 2, head=True)  # type: ignore[func-returns-value]
    assert changed[-1] == "lm_head"
    assert len(changed) == 3 * 7 + 1
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_left_as_it_was_found(kind: str) -> None:
    model, batches = tiny(kind).train(), calibration()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    walking = walk(model, batches)
    next(walking)
    assert not model.training
    walking.close()
    assert model.training
    change_matrices(model, batches, lambda name, weight, inputs: weight)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(block) for block in blocks_of(model))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_gptq_over_a_model_comes_nearer_to_it_than_rtn() -> None:
    batches = calibration(24)
    ids = torch.cat([batch.ids for batch in batches if batch.ids.shape[1] == 14])
    with torch.no_grad():
        target = tiny()(ids).logits
    apart = {}
    for name in ("rtn", "gptq"):
        method, model = build("quantizers", {"method": name, "bits": 3, "group": 32}), tiny()
        change_matrices(model, batches, lambda n, w, i, m=method: m.quantize(w, i).restored())  # type: ignore[misc]
        with torch.no_grad():
            apart[name] = float((model(ids).logits - target).square().mean())
    assert apart["gptq"] < 0.8 * apart["rtn"]


@pytest.mark.parametrize(("family", "name", "settings"), [
    ("quantizers", "ternary_aware", {}),
    ("quantizers", "lsq_lora", {}),
    ("pruners", "pst", {"sparsity": 0.5}),
])  # fmt: skip
def test_a_model_is_trained_through_a_method_and_is_stock_afterwards(
    family: str, name: str, settings: dict[str, Any], tmp_path: Any
) -> None:
    model, (batch, *_), method = tiny(), calibration(), build(family, name)
    with attached(model, method, 0, **settings):
        learning = [p for p in model.parameters() if p.requires_grad]
        assert (model.lm_head.weight.requires_grad) == (name == "ternary_aware")
        adam, losses = torch.optim.Adam(learning, 1e-2), []
        for _ in range(20):
            logits = model(batch.ids, attention_mask=batch.mask).logits[batch.wanted]
            loss = torch.nn.functional.cross_entropy(logits, batch.targets)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            losses.append(loss.item())
        with torch.no_grad():
            trained = model(batch.ids).logits
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.requires_grad for n, p in model.named_parameters() if n.endswith("weight"))
    model.save_pretrained(tmp_path)
    stock = LlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(stock(batch.ids).logits, trained, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_walked_is_told() -> None:
    strange = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="gpt2") as told:
        list(walk(strange, calibration()))
    assert all(kind in told.value.hint for kind in KINDS)
    for nothing in ([], [Batch(*(torch.zeros(1, 3, dtype=torch.long),) * 4)]):
        with pytest.raises(UserError, match="no calibration rows"):
            list(walk(tiny(), nothing))
    with pytest.raises(UserError, match="room for biases"):
        with attached(tiny("mistral"), build("quantizers", "ternary_aware"), 0):
            pass
    with pytest.raises(ValueError, match="became"):
        change_matrices(tiny(), calibration(), lambda name, weight, inputs: weight[:1])
    model = tiny()
    model.model.layers[1].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj is a Identity"):
        list(walk(model, calibration()))
