"""Tables of rows as people keep them: CSV, TSV, JSON, JSONL, Parquet and Arrow files; mistakes have their place."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, UserErrors, nearest_word
from supertiny.core.files import read_rows

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow")
_SEPARATORS = ",;\t|"
_SHOWN = 20  # broken lines that are told one by one
_LONGEST_CELL = 10_000_000
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True)
class Table:
    """Rows by column name, each with the place where it stands, `file:line`."""

    source: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    places: tuple[str, ...]
    typed: bool = True
    """False where every cell is text, as in CSV."""
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names that the numbers of a column stand for, where the file says so."""

    def column(self, name: str, option: str) -> str:
        """The column of this name. Raises UserError with the nearest word."""
        if name not in self.columns:
            raise UserError(f"{option}: {self.source} has no column {name!r}", nearest_word(name, self.columns))
        return name


def read_table(path: Path) -> Table:
    """One file as a table, by its suffix. Raises UserErrors where it is empty, broken, or not UTF-8."""
    if not path.is_file():
        raise UserError(f"{path} is not there", "give a file of rows: " + ", ".join(SUFFIXES))
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        table = _read_csv(path)
    elif suffix in (".parquet", ".arrow"):
        table = _read_arrow(path)
    elif suffix == ".json":
        table = _of_rows(path, _json_rows(path))
    elif suffix in (".jsonl", ".ndjson"):
        table = _of_rows(path, _lines_of_json(path))
    else:
        raise UserError(f"{path}: {suffix or 'no suffix'} is no kind of table", "known: " + ", ".join(SUFFIXES))
    if not table.rows:
        raise UserError(f"{path} holds no row", "a task is made of rows with answers")
    return table


def joined(tables: Sequence[Table], source: str) -> Table:
    """Tables of the same columns one after the other."""
    for table in tables[1:]:
        if set(table.columns) != set(tables[0].columns):
            both = f"{', '.join(tables[0].columns)} and {', '.join(table.columns)}"
            raise UserError(f"{tables[0].source} and {table.source} have other columns: {both}", "give one file")
    return Table(
        source=tables[0].source if len(tables) == 1 else source,
        columns=tables[0].columns,
        rows=tuple(row for table in tables for row in table.rows),
        places=tuple(place for table in tables for place in table.places),
        typed=all(table.typed for table in tables),
        labels={name: names for table in tables for name, names in table.labels.items()},
    )


def read_utf8(path: Path) -> str:
    """A file's text, without a byte order mark. Raises UserError that says where it is not UTF-8 and what it may be."""
    raw = path.read_bytes()
    for mark, name in _MARKS.items():
        if raw.startswith(mark):
            raise UserError(f"{path} is {name}, not UTF-8", _convert(path, name))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = f"{path}:{line}: not UTF-8: byte 0x{raw[error.start]:02x}; it is probably Windows-1252"
        raise UserError(problem, _convert(path, "WINDOWS-1252")) from None


def _convert(path: Path, encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 {path.name} > utf8{path.suffix}"


def _read_csv(path: Path) -> Table:
    text = read_utf8(path)
    if not text.strip():
        raise UserError(f"{path} is empty", "the first line must name the columns")
    csv.field_size_limit(_LONGEST_CELL)
    separator = "\t" if path.suffix.lower() == ".tsv" else _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    errors: list[UserError] = []
    rows: list[Mapping[str, Any]] = []
    places: list[str] = []
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            place, line = f"{path}:{line}", reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = _header(cells, place)
            elif len(cells) != len(header):
                hint = f'a cell that holds {separator!r} stands in quotes: "..."'
                errors.append(UserError(f"{place}: {len(cells)} cells; the header has {len(header)}", hint))
            else:
                rows.append({name: cell for name, cell in zip(header, cells, strict=True) if name})
                places.append(place)
    except csv.Error as error:
        hint = 'a quote inside of a quoted cell is written twice: ""'
        errors.append(UserError(f"{path}:{line}: broken CSV: {error}", hint))
    if errors:
        raise _several(errors)
    return Table(str(path), tuple(filter(None, header)), tuple(rows), tuple(places), typed=False)


def _separator(text: str) -> str:
    """What stands between the cells: of the usual ones, that which cuts the header into the most cells."""
    first = io.StringIO(text, newline="")
    header = next((line for line in first if line.strip()), "")
    return max(_SEPARATORS, key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))


def _header(cells: Sequence[str], place: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise UserError(f"{place}: two columns are named {twice[0]!r}", "the first line must name the columns")
    if not any(names):
        raise UserError(f"{place}: the header names no column", "the first line must name the columns")
    return names  # a column without a name, as an index that a table program writes, is left out


def _several(errors: list[UserError]) -> UserError:
    if len(errors) > _SHOWN:
        errors = [*errors[:_SHOWN], UserError(f"and {len(errors) - _SHOWN} more lines")]
    return errors[0] if len(errors) == 1 else UserErrors(errors)


def _lines_of_json(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    text = read_utf8(path)
    numbers = [number for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(f"{path}:{number}", row) for number, row in zip(numbers, read_rows(path), strict=True)]


def _json_rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """A list of objects, an object that holds one list of them, or a line an object after all."""
    text = read_utf8(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{") and error.msg == "Extra data":
            return _lines_of_json(path)
        raise UserError(f"{path}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}") from None
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise UserError(f"{path} is no list of JSON objects", "one object a row, column names as keys")
    return [(f"{path}: row {number}", row) for number, row in enumerate(value, 1)]


def _of_rows(path: Path, placed: Iterable[tuple[str, Mapping[str, Any]]]) -> Table:
    placed = list(placed)
    columns = dict.fromkeys(name for _, row in placed for name in row)
    return Table(str(path), tuple(columns), tuple(row for _, row in placed), tuple(place for place, _ in placed))


def _read_arrow(path: Path) -> Table:
    """Parquet, and the Arrow files that `save_to_disk` writes, with the names of their class labels."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        hint = "pip install 'supertiny[datasets]', or save it as CSV or JSONL"
        raise UserError(f"{path}: reading {path.suffix} needs pyarrow, which is not installed", hint) from None
    try:
        if path.suffix.lower() == ".parquet":
            content = pyarrow.parquet.read_table(path)
        else:
            with path.open("rb") as file:
                content = pyarrow.ipc.open_stream(file).read_all()
        rows = content.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}", "fetch or write it again") from None
    noted = (content.schema.metadata or {}).get(b"huggingface", b"{}")
    features = (json.loads(noted).get("info") or {}).get("features") or {}
    table = _of_rows(path, ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1)))
    return Table(table.source, tuple(content.column_names), table.rows, table.places, labels=class_names(features))


def class_names(features: Any) -> dict[str, list[str]]:
    """Names of class labels by column, out of a data set's features as a file or a data set's card describes them."""
    if isinstance(features, Mapping):
        features = [{"name": name, **feature} for name, feature in features.items() if isinstance(feature, Mapping)]
    found: dict[str, list[str]] = {}
    for feature in features if isinstance(features, list) else []:
        kind = feature.get("dtype") if isinstance(feature, Mapping) else None
        names = feature.get("names") if not isinstance(kind, Mapping) else (kind.get("class_label") or {}).get("names")
        if isinstance(names, Mapping):  # {"0": "first", "1": "second"}
            names = [str(names[key]) for key in sorted(names, key=int)]
        if isinstance(names, list):
            found[str(feature["name"])] = [str(name) for name in names]
    return found
