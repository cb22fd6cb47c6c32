"""Tables are read as they were written, and what is broken is told with its line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.tables import read_dataset, read_table


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_csv_of_any_separator_with_quotes_and_lines_in_cells(tmp_path: Path, sign: str) -> None:
    text = f'\ufefftext{sign} label\r\n"two\nlines{sign} and ""quotes"""{sign}a\r\n\r\nDžem und Öl{sign}\r\n'
    table = read_table(written(tmp_path, "rows.csv", text))
    assert table.columns == ("text", "label")
    assert [dict(row) for row in table.rows] == [
        {"text": f'two\nlines{sign} and "quotes"', "label": "a"},
        {"text": "Džem und Öl", "label": ""},
    ]
    assert table.places == (f"{tmp_path / 'rows.csv'}:3", f"{tmp_path / 'rows.csv'}:5")
    assert not table.typed


def test_an_index_without_a_name_is_left_out(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "rows.csv", ",text,label\n0,a,b\n"))
    assert table.columns == ("text", "label")
    assert table.rows == ({"text": "a", "label": "b"},)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "a.csv: the first line must name the columns"),
        ("a.csv", "text,label\n", "a.csv holds no row"),
        ("a.csv", "text,text\nx,y\n", "a.csv: the first line must name the columns, each once (found text, text)"),
        ("a.csv", " , \nx,y\n", "a.csv: the first line must name the columns"),
        ("a.csv", 'text,label\nx,y\n"open,y\nz,w\n', "a.csv:3: broken CSV: unexpected end of data"),
        ("a.csv", 'text,label\n"a"b,y\n', "a.csv:2: broken CSV: "),
        ("a.csv", "text,label\nGr\u00fc\u00dfe,y\n".encode("latin-1"), "a.csv:2: not UTF-8: byte 0xfc (save it as"),
        ("a.csv", "text,label\nx,y\n".encode("utf-16"), "a.csv:1: not UTF-8: byte 0xff"),
        ("a.jsonl", '{"text": "x"}\n{"text": \n', "a.jsonl:2: broken JSON"),
        ("a.jsonl", "\n", "a.jsonl holds no row"),
        ("a.json", '[{"text": "x"}, 3]', "a.json is no list of JSON objects"),
        ("a.json", '[{"text":\n "x",}]', "a.json:2: broken JSON"),
        ("a.xlsx", "x", "a.xlsx: .xlsx is no kind of table (known: .csv"),
        ("a", "x", "a: no suffix is no kind of table"),
    ],
)
def test_broken_files_are_told_in_one_line(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(UserError) as told:
        read_table(written(tmp_path, name, content))
    assert words in str(told.value)
    assert not isinstance(told.value, UserErrors)


def test_all_rows_of_another_length_are_told_up_to_twenty(tmp_path: Path) -> None:
    with pytest.raises(UserErrors) as told:
        read_table(written(tmp_path, "a.csv", "text,label\nx,y\n" + "one, two, three\n" * 24 + "one\n"))
    lines = [str(error) for error in told.value.errors]
    assert lines[0].startswith(f"{tmp_path / 'a.csv'}:3: too many cells (the header has 2; one that holds ','")
    assert len(lines) == 21
    assert lines[-1].endswith("a.csv: 25 broken rows in all")


def test_json_as_lines_and_as_a_list(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "b\u2028c"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for name, text in (("a.jsonl", lines), ("b.json", json.dumps(rows)), ("c.json", lines)):
        table = read_table(written(tmp_path, name, text))
        assert (table.columns, list(table.rows), table.typed) == (("text", "n"), rows, True), name
    assert table.places[1].endswith("c.json:2")


def test_a_data_set_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the library datasets.*pip install datasets"):
        read_dataset("owner/rows", "train")


def test_a_data_set_of_the_hub_comes_with_names_and_without_nulls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a stand-in for the few names that are used: the library is an extra, and not installed everywhere."""

    class ClassLabel(SimpleNamespace):
        pass

    class DatasetsError(Exception):
        pass

    asked: list[Any] = []
    rows = [
        {"text": "ice", "label": 1, "calls": [{"name": "f", "arguments": {"a": 1, "b": None}}]},
        {"text": "fog", "label": -1, "calls": None},
        {"text": "sun", "label": None, "calls": []},
    ]

    def load(name: str, subset: str | None, split: str) -> Any:
        asked.append((name, subset, split))
        if split == "none":
            raise ValueError('Unknown split "none".\nShould be one of ["train"].')
        features = {"text": SimpleNamespace(), "label": ClassLabel(names=["hot", "cold"])}
        return SimpleNamespace(features=features, to_list=lambda: rows)

    library = ModuleType("datasets")
    errors = SimpleNamespace(DatasetsError=DatasetsError)
    vars(library).update(load_dataset=load, ClassLabel=ClassLabel, exceptions=errors)
    monkeypatch.setitem(sys.modules, "datasets", library)
    table = read_dataset("owner/rows", "train", "en")
    assert [dict(row) for row in table.rows] == [
        {"text": "ice", "label": "cold", "calls": [{"name": "f", "arguments": {"a": 1}}]},
        {"text": "fog"},
        {"text": "sun", "calls": []},
    ]
    assert (set(table.columns), table.places[0]) == ({"text", "label", "calls"}, "owner/rows: row 1")
    with pytest.raises(UserError, match='owner/rows cannot be read: Unknown split "none". Should be one of'):
        read_dataset("owner/rows", "none")
    assert asked == [("owner/rows", "en", "train"), ("owner/rows", None, "none")]
    with pytest.raises(UserError, match="is a file, not a data set"):
        read_dataset(str(written(tmp_path, "a.csv", "text\nx\n")), "train")
