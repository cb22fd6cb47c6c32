"""Keeps the tokens that the task, its format and chosen texts need; any other text falls back to smaller pieces.

Use when: the vocabulary is a large part of a small model: 28 of 135 million weights in SmolLM2, 136 of 494 in Qwen2.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from supertiny.compress.reshapers._tokenizer import Pieces, cut_rows, places_in
from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch


@dataclass(frozen=True)
class TrimVocabulary:
    """Tokens of the calibration rows, of these texts, of all bytes and all special tokens stay, whatever is said here.

    Embedding and output lose the rows of all other tokens; a kept text is cut into the same pieces as before.
    """

    extra_tokens: Annotated[int, Field(ge=0)] = 8192
    """How many of the tokenizer's most frequent tokens stay besides, by the order of its merges."""
    texts: tuple[str, ...] = ()
    """Texts whose tokens stay."""
    files: tuple[str, ...] = ()
    """UTF-8 text files whose tokens stay: a page of each language that the task must speak."""

    needs = ("calibration", "tokenizer")

    def reshape(self, model: Any, calibration: Sequence[Batch], tokenizer: Any) -> tuple[Any, Any]:
        """The model with fewer rows, changed in place, and its new tokenizer, of the same class as the old one.

        Raises UserError for a tokenizer that is no byte-level BPE, and where a file cannot be read.
        """
        pieces = Pieces(tokenizer)
        kept = pieces.bytes | pieces.added | pieces.most_frequent(self.extra_tokens)
        for batch in calibration:
            kept |= set(batch.ids[batch.mask.bool()].tolist())
            kept |= set(batch.targets.tolist())
        for text in (*self.texts, *(_read(Path(name)) for name in self.files)):
            kept |= set(tokenizer.encode(text, add_special_tokens=False))
        kept |= set(tokenizer.all_special_ids) | _named_in(model)
        known = pieces.added | set(pieces.texts)  # a model may have more rows than its tokenizer has tokens
        trimmed = pieces.trimmed(tokenizer, pieces.closed(kept & known))
        return cut_rows(model, places_in(tokenizer, trimmed)), trimmed


def _named_in(model: Any) -> set[int]:
    """Special tokens that the model's configuration names."""
    found: set[int] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for settings in (model.config, getattr(model, "generation_config", None)):
            value = getattr(settings, name, None)
            found |= {value} if isinstance(value, int) else set(value or ())
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"trim_vocabulary.files: {path} cannot be read: {error}", "give UTF-8 text files") from None
