"""A byte-level BPE tokenizer with fewer tokens, and a model's rows cut to them."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers

from supertiny.core.errors import UserError


class Pieces:
    """Vocabulary and merges of a fast tokenizer. Raises UserError where it is no byte-level BPE."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.plain: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
        model = self.plain.get("model") or {}
        kind = model.get("type", type(tokenizer).__name__)
        if kind != "BPE" or model.get("byte_fallback") or not _is_byte_level(self.plain):
            raise UserError(f"a {kind} tokenizer cannot be trimmed", "byte-level BPE works, as SmolLM2 and Qwen2 have")
        self.ids: dict[str, int] = model["vocab"]
        self.texts = {place: text for text, place in self.ids.items()}
        self.merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        self.added = {token["id"] for token in self.plain.get("added_tokens", [])}
        self._ranks = {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}

    @property
    def bytes(self) -> set[int]:
        """Tokens of one byte, out of which any text can be written."""
        return {self.ids[letter] for letter in pre_tokenizers.ByteLevel.alphabet() if letter in self.ids}

    def most_frequent(self, count: int) -> set[int]:
        """Tokens that the first `count` merges make: merges stand in the order of frequency."""
        made = ("".join(pair) for pair in self.merges[:count])
        return {self.ids[text] for text in made if text in self.ids}

    def closed(self, kept: Collection[int]) -> set[int]:
        """The tokens with all through which merging them passes: without those they could not be reached."""
        whole = set(kept)
        for place in kept:
            if place in self.texts and place not in self.added:
                whole |= self._on_the_way(self.texts[place])
        return whole

    def _on_the_way(self, text: str) -> set[int]:
        parts, seen = list(text), set(text)
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            rank, place = min((self._ranks.get(pair, len(self.merges)), spot) for spot, pair in enumerate(pairs))
            if rank == len(self.merges):
                break
            parts[place : place + 2] = ["".join(pairs[place])]
            seen.add(parts[place])
        return {self.ids[part] for part in seen if part in self.ids}

    def trimmed(self, tokenizer: Any, kept: Collection[int]) -> Any:
        """The same stock tokenizer with these tokens alone, in their order; their ids begin at 0 and have no gaps.

        A text whose pieces are all kept is cut into the same pieces: of the merges, those stay whose parts and result
        stay, so the ones that were applied are still the first that can be, and no new one can be applied.
        """
        new = {place: number for number, place in enumerate(sorted(kept))}
        plain = copy.deepcopy(self.plain)
        model = plain["model"]
        model["vocab"] = {text: new[place] for text, place in self.ids.items() if place in new}
        model["merges"] = [
            list(pair) for pair in self.merges if all(part in model["vocab"] for part in (*pair, "".join(pair)))
        ]
        for token in plain.get("added_tokens", []):
            token["id"] = new[token["id"]]
        _renumber(plain.get("post_processor"), new)
        made = copy.deepcopy(tokenizer)
        made._tokenizer = Tokenizer.from_str(json.dumps(plain))
        return made


def _is_byte_level(plain: Mapping[str, Any]) -> bool:
    parts = plain.get("pre_tokenizer") or {}
    return any(part.get("type") == "ByteLevel" for part in parts.get("pretokenizers", [parts]))


def _renumber(part: Any, new: Mapping[int, int]) -> None:
    """Ids within the rule that adds special tokens around a text."""
    if not part:
        return
    for inner in part.get("processors", []):
        _renumber(inner, new)
    for name in ("sep", "cls"):
        if isinstance(part.get(name), list):
            part[name][1] = new[part[name][1]]
    tokens = part.get("special_tokens")
    for token in tokens.values() if isinstance(tokens, dict) else ():
        token["ids"] = [new[place] for place in token["ids"]]


def places_in(old: Any, new: Any) -> list[int]:
    """For every token of the trimmed tokenizer, in order, its id in the old one."""
    ids = old.get_vocab()
    return [ids[text] for text, _ in sorted(new.get_vocab().items(), key=lambda item: item[1])]


def cut_rows(model: Any, places: Iterable[int]) -> Any:
    """The model with the embedding and output rows of these ids alone, tied if they were; its special ids follow."""
    wanted = torch.tensor(list(places))
    outer = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    cut: dict[int, torch.nn.Parameter] = {}
    for part in outer:
        for name in ("weight", "bias"):
            rows = getattr(part, name, None)
            if rows is not None:
                if id(rows) not in cut:
                    kept = rows.detach()[wanted.to(rows.device)].clone()
                    cut[id(rows)] = torch.nn.Parameter(kept, requires_grad=rows.requires_grad)
                setattr(part, name, cut[id(rows)])
        for size in ("num_embeddings", "out_features"):
            if hasattr(part, size):
                setattr(part, size, len(wanted))
    new = {int(place): number for number, place in enumerate(wanted)}
    for holder in (outer[0], model.base_model):
        if getattr(holder, "padding_idx", None) is not None:
            holder.padding_idx = new.get(holder.padding_idx)
    if hasattr(model.base_model, "vocab_size"):
        model.base_model.vocab_size = len(wanted)
    if hasattr(model, "vocab_size"):
        model.vocab_size = len(wanted)
    model.config.vocab_size = len(wanted)
    for settings in (model.config, getattr(model, "generation_config", None)):
        _renumber_settings(settings, new)
    return model


def _renumber_settings(settings: Any, new: Mapping[int, int]) -> None:
    for name, value in list(vars(settings).items()) if settings is not None else ():
        if name.endswith("_token_id") and isinstance(value, int | list | tuple):
            # A generation may stop at any of several tokens; those that were cut can no longer be written.
            many = [new[place] for place in value if place in new] if not isinstance(value, int) else new.get(value)
            setattr(settings, name, many)
