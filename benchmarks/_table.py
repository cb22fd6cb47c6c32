"""What every benchmark shares: its command line, the machine, the table that it prints and the JSON that it writes."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from supertiny.core.errors import UserError
from supertiny.core.files import write_json
from supertiny.core.machine import processor_name, usable_cores


def arguments(description: str, name: str) -> argparse.ArgumentParser:
    """`--quick` and `--json FILE`; a benchmark may add its own."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="less data, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures, command, versions and machine there")
    return parser


@contextmanager
def mistakes_told() -> Iterator[None]:
    """Ends the program with one line, and status 2, for a UserError within it."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def machine() -> dict[str, Any]:
    """Processor, cores, threads that this process may use, and gigabytes of memory."""
    import psutil

    return {
        "processor": processor_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": usable_cores(),
        "memory_gigabytes": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions; a package that is not there is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def publish(
    title: str,
    rows: Sequence[tuple[str, str, float]],
    packages: Sequence[str],
    json_file: Path | None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Prints rows of (figure's name, what it is, value) and writes them where `json_file` says."""
    table = Table(title=title)
    table.add_column("figure")
    table.add_column("what it is")
    table.add_column("value", justify="right")
    for name, meaning, value in rows:
        table.add_row(name, meaning, f"{value:,.4g}")
    console = Console(width=max(100, Console().width))
    console.print(table)
    report = {
        "figures": {name: value for name, _, value in rows},
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "versions": versions(packages),
        "machine": machine(),
        **(details or {}),
    }
    console.print(f"{report['machine']['processor']}, {report['machine']['threads']} threads; {report['versions']}")
    if json_file is not None:
        write_json(json_file, report)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of plain rows; its columns are their keys, in the order in which they come."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=max(140, Console().width)).print(table)
