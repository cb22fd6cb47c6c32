"""The tiny student with another tokenizer: some pairs of bytes are one token, and all ids are others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from supertiny.training.pupil import Pupil
from tests.tiny_student import SPECIAL, open_pupil, write_student

MERGES = [("T", "u"), ("r", "n"), ("Tu", "rn"), ("O", "n"), ("Turn", "On"), ("e", "n"), ("i", "t"), ("Ð", "³")]


def worded_tokenizer(specials: tuple[str, ...] = SPECIAL) -> Any:
    """Ids run the other way than the tiny student's; words of its task are whole tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    words = [left + right for left, right in MERGES]
    vocabulary = {token: place for place, token in enumerate([*letters, *words, *specials])}
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=specials[-1], pad_token=specials[0])


def worded_pupil(folder: Path, seed: int = 0) -> Pupil:
    tokenizer = worded_tokenizer()
    pupil = open_pupil(write_student(folder, seed))
    config = pupil.model.config
    config.vocab_size = len(tokenizer)
    torch.manual_seed(seed)
    return Pupil(LlamaForCausalLM(config).eval(), tokenizer, pupil.device)


def padded_pupil(pupil: Pupil, folder: Path, width: int, *more: str) -> Pupil:
    """The same model with rows for tokens that no text gives, and a tokenizer that has `more`."""
    pupil.save(folder, torch.float32)
    padded = open_pupil(folder)
    padded.tokenizer.add_special_tokens({"additional_special_tokens": list(more)})
    padded.model.resize_token_embeddings(width, mean_resizing=False)
    return padded
