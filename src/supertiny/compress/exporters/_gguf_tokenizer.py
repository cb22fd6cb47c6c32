"""The tokenizer of a Hugging Face folder as GGUF metadata."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.files import read_json

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama.cpp's token types


def write_tokenizer(writer: Any, folder: Path, vocabulary: int) -> None:
    """Adds vocabulary (padded to the model's size), merges, special tokens and chat template to a GGUFWriter.

    Raises UserError for any tokenizer but byte-level BPE of the kinds that llama.cpp knows.
    """
    from transformers import AutoTokenizer

    plain = read_json(folder / "tokenizer.json")
    model = plain["model"]
    if model.get("type") != "BPE":
        raise UserError(f"{folder}: gguf cannot write a {model.get('type')} tokenizer", "it writes byte-level BPE")
    if not model["merges"]:
        raise UserError(f"{folder}: gguf cannot write a tokenizer without merges", "no runtime opens one")
    tokens = [f"[PAD{place}]" for place in range(vocabulary)]
    kinds = [_UNUSED] * vocabulary
    for text, place in model["vocab"].items():
        tokens[place], kinds[place] = text, _NORMAL
    for added in plain.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(plain, folder))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id)):
        if getattr(tokenizer, f"{name}_token_id") is not None:
            add(getattr(tokenizer, f"{name}_token_id"))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is not None:
        writer.add_pad_token_id(pad)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _splitting(plain: Any, folder: Path) -> str:
    """llama.cpp's name of how the text is split before merging."""
    parts = plain.get("pre_tokenizer") or {}
    parts = parts.get("pretokenizers", [parts])
    patterns = [str(part.get("pattern", {}).get("Regex", "")) for part in parts if part.get("type") == "Split"]
    if patterns:
        if all(r"|\p{N}|" in pattern for pattern in patterns):
            return "qwen2"
    elif any(part.get("type") == "ByteLevel" for part in parts):
        # Digits one by one is what tells smollm from gpt-2. A tokenizer that was read from a GGUF has lost that rule,
        # but a vocabulary without any token of two digits shows that it was made by it.
        if any(part.get("type") == "Digits" for part in parts):
            return "smollm"
        return "gpt-2" if any(re.search(r"\d\d", token) for token in plain["model"]["vocab"]) else "smollm"
    raise UserError(f"{folder}: gguf does not know how this tokenizer splits text", "smollm, gpt-2 and qwen2 work")
