"""A pupil that is saved in the middle of its training goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from supertiny.core.errors import UserError
from supertiny.training.pupil import Pupil
from tests.tiny_student import same_weights, weights, write_student


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_saving_changes_nothing_and_opens_in_stock_transformers(precision: str, tmp_path: Path) -> None:
    pupil = Pupil.open(write_student(tmp_path / "base"), precision)  # type: ignore[arg-type]
    ids = torch.arange(3, 200)[None]
    with torch.no_grad():
        before, kept = pupil.model(ids).logits, weights(pupil)
        frequencies = pupil.model.model.rotary_emb.inv_freq.clone()
        pupil.save(tmp_path / "saved")
        assert same_weights(kept, weights(pupil))
        assert torch.equal(pupil.model.model.rotary_emb.inv_freq, frequencies)
        assert torch.equal(pupil.model(ids).logits, before)
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
        again = Pupil.open(tmp_path / "saved", "bfloat16")
        assert torch.equal(
            stock.model.layers[0].mlp.up_proj.weight, kept["model.layers.0.mlp.up_proj.weight"].bfloat16()
        )
        assert stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
        if precision == "bfloat16":
            assert torch.equal(again.model(ids).logits, before)
    assert again.parameters == pupil.parameters
    assert again.tokenizer.decode(again.tokenizer.encode("свет 灯 💡")) == "свет 灯 💡"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pupil = Pupil.open(write_student(tmp_path / "base"), "bfloat16")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pupil.model, "save_pretrained", full)
    with pytest.raises(UserError, match="No space left"):
        pupil.save(tmp_path / "saved")
