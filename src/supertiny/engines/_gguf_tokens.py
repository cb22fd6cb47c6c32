"""How many tokens a text has for the model in a GGUF file, without loading the model: a second, not a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from supertiny.engines._gguf_file import _string, _unpack, _value, read_header

_STRING, _ARRAY = 8, 9
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def token_counter(gguf: Path) -> Callable[[str], int] | None:
    """Counts tokens as the model's own byte-level tokenizer does; None for a tokenizer of another kind.

    Texts are split into words as Qwen2, SmolLM or GPT-2 do it; of a model that does it otherwise, counts are near.
    Raises UserError for a file that is missing or broken.
    """
    metadata = read_header(gguf).metadata
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return None
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    lists = _string_lists(gguf, ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"))
    vocabulary = {token: number for number, token in enumerate(lists["tokenizer.ggml.tokens"])}
    merges: list[Any] = [tuple(pair.split(" ", 1)) for pair in lists["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    kind = metadata.get("tokenizer.ggml.pre")
    pieces: list[Any] = [ByteLevel(add_prefix_space=False)]
    if kind == "qwen2":
        pieces = [Split(Regex(_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    elif kind == "smollm":
        pieces = [Digits(individual_digits=True), *pieces]
    tokenizer.pre_tokenizer = Sequence(pieces)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _string_lists(gguf: Path, wanted: tuple[str, ...]) -> dict[str, list[str]]:
    """The long lists that a header's reader leaves out."""
    found: dict[str, list[str]] = {}
    with gguf.open("rb") as file:
        file.seek(4)
        _, _, entries = _unpack(file, "IQQ")
        for _ in range(entries):
            key = _string(file).decode()
            (kind,) = _unpack(file, "I")
            if key in wanted and kind == _ARRAY:
                found[key] = _strings(file)
            else:
                _value(file, kind)
    return found


def _strings(file: BinaryIO) -> list[str]:
    inner, length = _unpack(file, "IQ")
    if inner != _STRING:
        raise ValueError(f"a list of type {inner} where texts were expected")
    return [_string(file).decode("utf-8", "replace") for _ in range(length)]
