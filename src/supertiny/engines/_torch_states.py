"""What a small language model's middle block knows of the words of a text, after it has read the text twice.

A causal model sees only what stands before a word. At the second reading it has seen what comes after it, too.
Paper: Springer et al., Repetition Improves Language Model Embeddings, 2024, arXiv:2402.15449.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

Spans = Sequence[tuple[int, int]]  # start and end of each word, in characters
_ROWS = 16  # read together
# A bar per opened file would tear the run's own progress.
disable_progress_bar()  # type: ignore[no-untyped-call]
_FIRST, _AGAIN = "Request: ", "\nThe same request again: "
_AROUND = 32  # tokens that these may take


class HiddenStates:
    """Reads texts with the lower half of the blocks of a stock Hugging Face folder.

    Of a text that does not fit the model's context twice, the beginning is read; the states of later words are zeros.
    """

    def __init__(self, folder: Path) -> None:
        fast = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        dtype = torch.bfloat16 if fast else torch.float32
        self._model = AutoModel.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()
        self._model.to("cuda" if torch.cuda.is_available() else "cpu")
        # The blocks above the middle, and the norm at the end, would only take time.
        self._model.layers = self._model.layers[: (len(self._model.layers) + 1) // 2]
        self._model.norm = torch.nn.Identity()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._tokenizer.padding_side = "right"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self.width: int = self._model.config.hidden_size
        self._longest = (self._model.config.max_position_embeddings - _AROUND) // 2

    def __call__(self, texts: Sequence[str], words: Sequence[Spans]) -> list[NDArray[np.float32]]:
        """(words, width) for each text, in order."""
        order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), place))
        found: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), _ROWS):
            places = order[start : start + _ROWS]
            read = self._read([texts[place] for place in places], [words[place] for place in places])
            found |= dict(zip(places, read, strict=True))
        return [found[place] for place in range(len(texts))]

    def _read(self, texts: Sequence[str], words: Sequence[Spans]) -> list[NDArray[np.float32]]:
        texts = [self._cut(text) for text in texts]
        twice = [f"{_FIRST}{text}{_AGAIN}{text}" for text in texts]
        batch = self._tokenizer(
            twice, add_special_tokens=False, return_offsets_mapping=True, padding=True, return_tensors="pt"
        )
        ends = batch.pop("offset_mapping").numpy()
        with torch.inference_mode():
            states = (
                self._model(**batch.to(self._model.device), use_cache=False).last_hidden_state.float().cpu().numpy()
            )
        begins = [len(_FIRST) + len(text) + len(_AGAIN) for text in texts]
        return [
            np.stack([_of_word(row, tokens, begin + first, begin + last) for first, last in spans])
            if spans
            else np.empty((0, self.width), np.float32)
            for row, tokens, begin, spans in zip(states, ends, begins, words, strict=True)
        ]

    def _cut(self, text: str) -> str:
        limits = {"truncation": True, "max_length": self._longest}
        ends = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **limits)["offset_mapping"]
        return text[: ends[-1][1]] if len(ends) == self._longest else text


def _of_word(states: NDArray[np.float32], tokens: NDArray[np.int64], first: int, last: int) -> NDArray[np.float32]:
    """(width,) of the tokens (tokens, 2) within some characters: their mean, and the last one, which has seen all."""
    inside = np.flatnonzero((tokens[:, 1] > first) & (tokens[:, 0] < last))
    if not len(inside):
        return np.zeros(states.shape[1], np.float32)
    found: NDArray[np.float32] = (states[inside].mean(axis=0) + states[inside[-1]]) / 2
    return found
