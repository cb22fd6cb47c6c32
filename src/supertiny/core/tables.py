"""Tables of rows as people keep them: CSV and JSON files, and data sets of the Hugging Face hub."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.files import read_rows

SHOWN = 20  # broken rows that are told one by one
_KINDS = ".csv, .tsv, .json, .jsonl"


@dataclass(frozen=True)
class Table:
    """Rows by column name, each with the place where it stands, `file:line`."""

    source: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    places: tuple[str, ...]
    typed: bool = True
    """False where every cell is text, as in CSV."""


def read_table(path: Path) -> Table:
    """One file as a table, by its suffix. Raises UserErrors where it is empty, broken, or not UTF-8."""
    if not path.is_file():
        raise UserError(f"{path} is not there", f"give a file of rows: {_KINDS}")
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        table = _read_csv(path)
    elif kind in (".json", ".jsonl", ".ndjson"):
        table = _table(str(path), _json_rows(path))
    else:
        hint = f"known: {_KINDS}; a folder of Parquet files: --from-dataset FOLDER"
        raise UserError(f"{path}: {kind or 'no suffix'} is no kind of table", hint)
    if not table.rows:
        raise UserError(f"{path} holds no row", "a task is made of rows with answers")
    return table


def read_dataset(name: str, split: str, subset: str = "") -> Table:
    """One split of a data set, `owner/name` on the hub or a folder, read by the library `datasets`.

    Classes are named. A null within a value is left out: Arrow puts it where a row lacks what another row has. Raises
    UserError with the library's words where it is not there, has no such split or subset, or the hub is out of reach.
    """
    try:
        import datasets
    except ImportError:
        hint = "pip install datasets, or give a file with --from-csv"
        raise UserError("reading a data set needs the library datasets, which is not installed", hint) from None
    if Path(name).is_file():
        raise UserError(f"{name} is a file, not a data set", "give it with --from-csv")
    try:
        data = datasets.load_dataset(name, subset or None, split=split)
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError, ValueError) as error:
        hint = "--split and --config say which rows; without a network, give a folder that holds its files"
        raise UserError(f"{name} cannot be read: {' '.join(str(error).split())[:400]}", hint) from error
    rows = [_without_nulls(row) for row in data.to_list()]
    for column, feature in data.features.items():
        if isinstance(feature, datasets.ClassLabel):
            for row in rows:
                number = row.pop(column, -1)
                row |= {column: feature.names[number]} if number >= 0 else {}
    return _table(name, ((f"{name}: row {number}", row) for number, row in enumerate(rows, 1)))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _table(source: str, placed: Iterable[tuple[str, Mapping[str, Any]]]) -> Table:
    placed = list(placed)
    columns = dict.fromkeys(name for _, row in placed for name in row)
    return Table(source, tuple(columns), tuple(row for _, row in placed), tuple(place for place, _ in placed))


def _read_text(path: Path) -> str:
    """Without a byte order mark. Raises UserError that says where the file is not UTF-8."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        hint = f"save it as UTF-8, or: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{path.suffix}"
        raise UserError(f"{path}:{line}: not UTF-8: byte 0x{raw[error.start]:02x}", hint) from None


def _read_csv(path: Path) -> Table:
    """Cells are separated by what separates the header's: comma, semicolon or tab."""
    text = _read_text(path)
    first_line = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(",;\t", key=first_line.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    placed: list[tuple[str, Mapping[str, Any]]] = []
    errors: list[UserError] = []
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        names = [name for name in header if name]  # an index that a table program writes has none
        reader.fieldnames = header
        if not names or len(set(names)) < len(names):
            raise UserError(f"{path}: the first line must name the columns, each once", f"found {', '.join(names)}")
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                hint = f'the header has {len(header)}; one that holds {separator!r} stands in quotes: "..."'
                errors.append(UserError(f"{place}: too {'many' if None in row else 'few'} cells", hint))
            placed.append((place, {name: row[name] for name in names}))
    except csv.Error as error:
        hint = 'a quote inside of a quoted cell is written twice: ""'
        raise UserError(f"{path}:{reader.line_num + 1}: broken CSV: {error}", hint) from None
    if errors:
        raise UserErrors([*errors[:SHOWN], UserError(f"{path}: {len(errors)} broken rows in all")])
    rows, places = tuple(row for _, row in placed), tuple(place for place, _ in placed)
    return Table(str(path), tuple(names), rows, places, typed=False)


def _json_rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """One JSON object a line, or a list of them."""
    text = _read_text(path)
    if not text.lstrip().startswith("["):
        numbers = [number for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [(f"{path}:{number}", row) for number, row in zip(numbers, read_rows(path), strict=True)]
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} is no list of JSON objects", "one object a row, column names as keys")
    return [(f"{path}: row {number}", row) for number, row in enumerate(rows, 1)]
