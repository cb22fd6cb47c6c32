"""Tokens counted from a GGUF file's own lists, without its model."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from supertiny.core.errors import UserError
from supertiny.core.models import path_of
from supertiny.engines._gguf_tokens import token_counter

TEXTS = [
    "turn on the kitchen light, please",
    'set_light({"number": 1234, "on": true})\n\n  Values: Kitchen, Living room',
    "включи 灯 💡 and don't forget the door's 20th key",
]


def written(path: Path, kind: str, pre: str = "qwen2") -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789", "Ġ"]
    writer.add_token_list([*letters, "li", "gh", "ligh", "light", "Ġlight", *(f"filler{n}" for n in range(100))])
    writer.add_token_merges(["l i", "g h", "li gh", "ligh t", "Ġ light"])
    writer.add_token_types([1] * 142)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    path.write_bytes(path.read_bytes() + bytes(64))  # the padding before tensors, of which there are none
    return path


def test_merges_are_those_of_the_file(tmp_path: Path) -> None:
    count = token_counter(written(tmp_path / "m.gguf", "gpt2"))
    assert count is not None
    assert [count(text) for text in ("light", "light light", "night", "l12", "")] == [1, 2, 4, 3, 0]


def test_another_kind_of_tokenizer_is_left_to_others(tmp_path: Path) -> None:
    assert token_counter(written(tmp_path / "m.gguf", "llama")) is None


def test_what_is_no_gguf_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a GGUF"):
        token_counter(tmp_path / "m.gguf")


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2-135m-instruct-q4_1", "qwen2.5-coder-1.5b-instruct-q4_k_m"])
def test_counts_are_the_models_own(name: str) -> None:
    from supertiny.engines._gguf_to_hf import tokenizer_of

    count, tokenizer = token_counter(path_of(name)), tokenizer_of(path_of(name))
    assert count is not None
    for text in TEXTS:
        assert count(text) == len(tokenizer.encode(text, add_special_tokens=False)), text
