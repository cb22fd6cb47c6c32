"""States of words: by their places in the text, the same alone and among others, and aware of what comes after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from supertiny.engines._torch_states import HiddenStates
from supertiny.prototype.steps import _reader
from supertiny.prototype.steps._reader import Reader, scaled
from supertiny.prototype.steps._spans import words_of
from tests.tiny_student import write_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("reader"))


def spans(text: str) -> list[tuple[int, int]]:
    return [(first, last) for _, first, last in words_of(text)]


def test_each_word_has_a_state_that_knows_what_comes_after(folder: Path) -> None:
    model = HiddenStates(folder)
    texts = ["play ina", "play ira", "play ina in oban, please", ""]
    found = model(texts, [spans(text) for text in texts])
    assert [state.shape for state in found] == [(2, 64), (2, 64), (6, 64), (0, 64)]
    assert not np.allclose(found[0][0], found[1][0], atol=1e-3), "the first word has seen the second"
    (alone,) = model(texts[:1], [spans(texts[0])])
    assert np.abs(alone - found[0]).max() < 0.05, "the longer rows beside it change nothing but rounding"


def test_of_a_text_that_is_too_long_the_beginning_is_read(folder: Path) -> None:
    model = HiddenStates(folder)
    known = model._model.config.max_position_embeddings
    assert 2 * model._longest < known
    text = "play " * known
    (found,) = model([text], [spans(text)])
    assert found.shape == (known, 64)
    read = np.abs(found).sum(axis=1) > 0
    assert read[0]
    assert not read[-1]
    assert not (~read[:-1] & read[1:]).any(), "nothing is read after what was left out"
    (short,) = model(["play ina"], [spans("play ina")])
    assert (np.abs(short).sum(axis=1) > 0).all()


def test_words_are_found_in_every_script(folder: Path) -> None:
    text = "spiele Düne 天气"
    (found,) = HiddenStates(folder)([text], [spans(text)])
    assert found.shape == (3, 64)
    assert (np.abs(found).sum(axis=1) > 0).all()


def test_a_reader_reads_each_text_once_while_it_keeps_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(folder)
    _, first, again, _ = reader(["play ina", "stop", "stop", ""])
    assert again is first
    assert reader(["stop"])[0] is first
    monkeypatch.setattr(_reader, "_KEPT", 2)
    reader(["go", "stop"])
    assert list(reader._kept) == ["go", "stop"], "those that were used last"
    assert reader(["stop"])[0] is first
    means = reader.means(["stop", "", "play ina"])
    assert means.shape == (3, 64)
    assert np.allclose(means[0], first[0])
    assert not means[1].any()


def test_states_are_brought_to_one_length_whatever_their_size() -> None:
    rows = np.random.default_rng(3).normal(5.0, [0.1, 100.0, 1.0], (50, 3)).astype(np.float32)
    brought = scaled(rows, length=5.0)(rows)
    assert np.sqrt((brought**2).sum(axis=1).mean()) == pytest.approx(5.0, rel=1e-4)
    assert np.allclose(brought.mean(axis=0), 0, atol=1e-4)
    same = np.ones((4, 3), np.float32)
    assert not scaled(same, length=5.0)(same).any(), "rows that say nothing stay nothing"
