"""A small model's hidden states of requests, as traits for linear models of words and of requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack  # type: ignore[import-untyped, unused-ignore]
from sklearn.decomposition import PCA  # type: ignore[import-untyped, unused-ignore]
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped, unused-ignore]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped, unused-ignore]

from supertiny.prototype.bench import Bench
from supertiny.prototype.steps._spans import words_of

if TYPE_CHECKING:
    from supertiny.engines._torch_states import HiddenStates

Rows = NDArray[np.float32]
_DIRECTIONS = 200
_KEPT = 4096  # texts


class Reader:
    """States of the words of texts; a text is not read again while it is among the last few thousand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model: HiddenStates | None = None
        self._kept: dict[str, Rows] = {}

    def __call__(self, texts: Sequence[str]) -> list[Rows]:
        """(words, width) of each text, in order."""
        new = sorted({text for text in texts if text not in self._kept})
        for text, states in zip(new, self._read(new), strict=True):
            self._kept[text] = states
        found = [self._kept[text] for text in texts]
        for text in dict.fromkeys(texts):
            self._kept[text] = self._kept.pop(text)  # used last
        while len(self._kept) > _KEPT:  # a pool may be of any size, and each request takes some 20 kB
            del self._kept[next(iter(self._kept))]
        return found

    def means(self, texts: Sequence[str]) -> Rows:
        """(texts, width), over the words of each; zeros where it has none."""
        return np.stack([states.sum(axis=0) / max(1, len(states)) for states in self(texts)])

    def _read(self, texts: Sequence[str]) -> list[Rows]:
        if not texts:
            return []
        if self._model is None:
            from supertiny.engines._torch_states import HiddenStates

            self._model = HiddenStates(self._folder)
        return self._model(texts, [[(first, last) for _, first, last in words_of(text)] for text in texts])


def reader_of(name: str, bench: Bench) -> Reader | None:
    """The reader of a model of the catalogue or a Hugging Face folder, opened once; None for no name."""
    if not name:
        return None

    def make() -> Reader:
        from supertiny.engines._huggingface import huggingface_folder

        return Reader(huggingface_folder(name, "reader"))

    reader: Reader = bench.shelf.once(f"reader {name}", make)
    return reader


def scaled(rows: Rows, length: float) -> Callable[[Rows], Rows]:
    """Learns from (rows, width) to bring such rows to their main directions, with a mean square length as given.

    Every state counts the same whatever its size; how much all together count beside 0-or-1 traits is the length.
    """
    if not rows.std(axis=0).any():
        return lambda some: np.zeros((len(some), 1), np.float32)
    model = make_pipeline(StandardScaler(), PCA(min(_DIRECTIONS, *rows.shape), svd_solver="full")).fit(rows)
    size = float(np.sqrt((model.transform(rows) ** 2).sum(axis=1).mean()))

    def bring(some: Rows) -> Rows:
        brought: Rows = (model.transform(some) * (length / size)).astype(np.float32)
        return brought

    return bring


def beside(matrix: csr_matrix, rows: Rows) -> csr_matrix:
    """Sparse traits and dense ones as one sparse matrix."""
    return hstack([matrix, csr_matrix(rows)], format="csr")
