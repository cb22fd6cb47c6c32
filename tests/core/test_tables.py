"""Tables are read as they were written, and what is broken is told with its line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.tables import class_names, joined, read_table


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_csv_of_any_separator_with_quotes_and_lines_in_cells(tmp_path: Path, sign: str) -> None:
    text = f'\ufefftext{sign}label\r\n"two\nlines{sign} and ""quotes"""{sign}a\r\n\r\nDžem und Öl{sign}\r\n'
    table = read_table(written(tmp_path, "rows.csv", text))
    assert table.columns == ("text", "label")
    assert [dict(row) for row in table.rows] == [
        {"text": f'two\nlines{sign} and "quotes"', "label": "a"},
        {"text": "Džem und Öl", "label": ""},
    ]
    assert table.places == (f"{tmp_path / 'rows.csv'}:2", f"{tmp_path / 'rows.csv'}:5")
    assert not table.typed


def test_an_index_without_a_name_is_left_out(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "rows.csv", ",text,label\n0,a,b\n"))
    assert table.columns == ("text", "label")
    assert table.rows == ({"text": "a", "label": "b"},)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "a.csv is empty (the first line must name the columns)"),
        ("a.csv", "text,label\n", "a.csv holds no row"),
        ("a.csv", "text,text\nx,y\n", "a.csv:1: two columns are named 'text'"),
        ("a.csv", " , \nx,y\n", "a.csv:1: the header names no column"),
        ("a.csv", 'text,label\nx,y\n"open,y\nz,w\n', "a.csv:3: broken CSV: unexpected end of data"),
        ("a.csv", 'text,label\n"a"b,y\n', "a.csv:2: broken CSV: "),
        ("a.csv", "text,label\nGr\u00fc\u00dfe,y\n".encode("latin-1"), "a.csv:2: not UTF-8: byte 0xfc; it is probably"),
        ("a.csv", "text,label\nx,y\n".encode("utf-16"), "a.csv is UTF-16, not UTF-8 (convert it: iconv -f UTF-16"),
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


def test_all_lines_of_another_length_are_told_up_to_twenty(tmp_path: Path) -> None:
    with pytest.raises(UserErrors) as told:
        read_table(written(tmp_path, "a.csv", "text,label\nx,y\n" + "one, two, three\n" * 25))
    lines = [str(error) for error in told.value.errors]
    assert lines[0].startswith(f"{tmp_path / 'a.csv'}:3: 3 cells; the header has 2 (a cell that holds ','")
    assert len(lines) == 21
    assert lines[-1] == "and 5 more lines"


def test_json_in_its_three_shapes(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "b\u2028c"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for name, text in (
        ("a.jsonl", lines),
        ("b.json", json.dumps(rows)),
        ("c.json", json.dumps({"version": 1, "data": rows})),
        ("d.json", lines),
    ):
        table = read_table(written(tmp_path, name, text))
        assert (table.columns, list(table.rows), table.typed) == (("text", "n"), rows, True), name


def test_a_missing_column_is_told_with_the_nearest(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a.csv", "utterance,intent\nx,y\n"))
    assert table.column("intent", "--label") == "intent"
    with pytest.raises(UserError) as told:
        table.column("intnet", "--label")
    assert str(told.value) == f"--label: {table.source} has no column 'intnet' (did you mean 'intent'?)"


def test_tables_are_joined_where_they_have_the_same_columns(tmp_path: Path) -> None:
    first = read_table(written(tmp_path, "a.csv", "text,label\nx,y\n"))
    second = read_table(written(tmp_path, "b.jsonl", '{"label": "v", "text": "u"}'))
    both = joined([first, second], "all")
    assert (both.source, len(both.rows), both.typed) == ("all", 2, False)
    assert both.places[1].endswith("b.jsonl:1")
    third = read_table(written(tmp_path, "c.csv", "text\nx\n"))
    with pytest.raises(UserError, match="have other columns: text, label and text"):
        joined([first, third], "all")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError) as told:
        read_table(written(tmp_path, "a.parquet", b"PAR1"))
    assert "reading .parquet needs pyarrow" in str(told.value)
    assert "pip install 'supertiny[datasets]'" in str(told.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_parquet_and_arrow_come_with_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Against a stand-in of pyarrow's few functions that are used: it is an extra, and not installed everywhere."""
    features = {"text": {"dtype": "string"}, "label": {"_type": "ClassLabel", "names": ["hot", "cold"]}}
    content = SimpleNamespace(
        to_pylist=lambda: [{"text": "ice", "label": 1}],
        column_names=["text", "label"],
        schema=SimpleNamespace(metadata={b"huggingface": json.dumps({"info": {"features": features}}).encode()}),
    )

    class BrokenError(Exception):
        pass

    def read(source: Any) -> Any:
        broken = b"broken" in (source.read_bytes() if isinstance(source, Path) else source.read())
        if broken:
            raise BrokenError("no\nmagic bytes")
        return content

    whole, ipc, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.ipc"), ModuleType("pyarrow.parquet")
    vars(whole).update(ArrowException=BrokenError, ipc=ipc, parquet=parquet)
    vars(parquet).update(read_table=read)
    vars(ipc).update(open_stream=lambda file: SimpleNamespace(read_all=lambda: read(file)))
    for module in (whole, ipc, parquet):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    table = read_table(written(tmp_path, name, b"whole"))
    assert (table.columns, table.rows) == (("text", "label"), ({"text": "ice", "label": 1},))
    assert table.labels == {"label": ["hot", "cold"]}
    with pytest.raises(UserError, match="cannot be read: no magic bytes"):
        read_table(written(tmp_path, name, b"broken"))


def test_class_names_of_a_card() -> None:
    features = [
        {"name": "text", "dtype": "string"},
        {"name": "label", "dtype": {"class_label": {"names": {"0": "a", "10": "c", "9": "b"}}}},
    ]
    assert class_names(features) == {"label": ["a", "b", "c"]}
    assert class_names(None) == {}
