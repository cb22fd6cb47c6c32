"""What every reshaper obeys: still stock, still answering, smaller by what was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from supertiny.core.errors import UserError
from supertiny.core.methods import build, cards
from supertiny.training.lessons import Batch, Lesson, collate

RESHAPERS = sorted(cards("reshapers"))
KEPT = {"keep": 4, "drop_blocks": 2}
SETTINGS: dict[str, dict[str, Any]] = {"drop_blocks": {"share": 0.5}}


def tiny(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def calibration() -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(0, 97, (length,), generator=generator).tolist() for length in (9, 12, 7, 10)]
    lessons = [Lesson(tuple(row), len(row) // 2) for row in rows]
    return [collate(lessons[:2], 0), collate(lessons[2:], 0)]


def reshaped(name: str, model: Any, **settings: Any) -> Any:
    return build("reshapers", {"method": name, **(settings or SETTINGS.get(name, {}))}).reshape(model, calibration())


def without(model: Any, place: int) -> torch.Tensor:
    """Logits of the model with one block passed by, computed by hand."""
    ids = torch.arange(8)[None]
    keep = [layer for i, layer in enumerate(model.model.layers) if i != place]
    with torch.inference_mode():
        hidden = model.model.embed_tokens(ids)
        turns = model.model.rotary_emb(hidden, torch.arange(8)[None])
        mask = torch.full((8, 8), float("-inf")).triu(1)[None, None]
        for layer in keep:
            result = layer(hidden, attention_mask=mask, position_ids=torch.arange(8)[None], position_embeddings=turns)
            hidden = result[0] if isinstance(result, tuple) else result
        logits: torch.Tensor = model.lm_head(model.model.norm(hidden))
    return logits


@pytest.mark.parametrize("name", RESHAPERS)
def test_it_opens_in_stock_transformers_and_answers_the_same(name: str, tmp_path: Path) -> None:
    model = reshaped(name, tiny())
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(stock) is LlamaForCausalLM
    assert stock.config.num_hidden_layers == len(stock.model.layers) == KEPT[name]
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        assert torch.allclose(stock(ids).logits, model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("name", RESHAPERS)
def test_with_a_cache_it_writes_what_it_writes_without(name: str) -> None:
    model = reshaped(name, tiny())
    ids = torch.arange(5)[None]
    written = [
        model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=cached, pad_token_id=0, eos_token_id=None)
        for cached in (True, False)
    ]
    assert torch.equal(written[0], written[1])
    assert written[0].shape == (1, 13)


@pytest.mark.parametrize("name", RESHAPERS)
def test_same_calibration_same_result(name: str) -> None:
    left, right = reshaped(name, tiny()), reshaped(name, tiny())
    assert all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def test_keep_changes_nothing() -> None:
    model = tiny()
    before = [p.clone() for p in model.parameters()]
    assert reshaped("keep", model) is model
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "left"), [({"blocks": 1}, 3), ({"share": 0.25}, 3), ({"share": 0.0}, 4), ({"blocks": 3}, 1)]
)
def test_drop_blocks_shrinks_by_what_was_asked(settings: dict[str, Any], left: int) -> None:
    model = tiny()
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    whole = model.num_parameters()
    assert reshaped("drop_blocks", model, **settings).num_parameters() == whole - (4 - left) * block


@pytest.mark.parametrize("place", range(4))
def test_drop_blocks_drops_the_block_that_does_nothing(place: int) -> None:
    model = tiny(seed=place)
    with torch.no_grad():
        for part in (model.model.layers[place].self_attn.o_proj, model.model.layers[place].mlp.down_proj):
            part.weight.zero_()
        for other in range(4):
            if other != place:
                model.model.layers[other].mlp.down_proj.weight.mul_(30)
    expected = without(model, place)
    small = reshaped("drop_blocks", model, blocks=1)
    with torch.inference_mode():
        assert torch.allclose(small(torch.arange(8)[None]).logits, expected, atol=1e-4)
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_drop_blocks_by_loss_drops_the_block_whose_absence_costs_least(seed: int) -> None:
    model = tiny(seed)
    losses = []
    for place in range(4):
        rest = tiny(seed)
        del rest.model.layers[place]
        lost = places = 0.0
        for batch in calibration():
            with torch.inference_mode():
                logits = rest(batch.ids, attention_mask=batch.mask, use_cache=False).logits[batch.wanted]
            lost += float(torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum"))
            places += len(batch.targets)
        losses.append(lost / places)
    cheapest = losses.index(min(losses))
    kept = [p for p in range(4) if p != cheapest]
    expected = [tiny(seed).model.layers[place].mlp.up_proj.weight for place in kept]
    small = reshaped("drop_blocks", model, blocks=1, by="loss")
    assert len(small.model.layers) == 3
    assert all(torch.equal(a.mlp.up_proj.weight, b) for a, b in zip(small.model.layers, expected, strict=True))


def test_drop_blocks_refuses_to_drop_all_and_models_it_does_not_know() -> None:
    with pytest.raises(UserError, match="4 of 4"):
        reshaped("drop_blocks", tiny(), blocks=4)

    class Strange:
        base_model = torch.nn.Linear(2, 2)

    with pytest.raises(UserError, match="Strange"):
        reshaped("drop_blocks", Strange())
    for by in ("cosine", "loss"):
        with pytest.raises(UserError, match="no calibration rows"):
            build("reshapers", {"method": "drop_blocks", "blocks": 1, "by": by}).reshape(tiny(), [])
