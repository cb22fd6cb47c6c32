"""A file is whole or not there, and what cannot be read is told with its line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from supertiny.core import files
from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, read_json, read_rows, sha256_of, write_json, write_rows, written_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_of_every_script_are_read_back_and_stay_readable(tmp_path: Path) -> None:
    rows = [{"text": "включи свет"}, {"text": "打开灯 💡"}, {"text": "line\u2028separator\nand feed"}, {"n": 1.5}]
    write_rows(tmp_path / "deep" / "rows.jsonl", rows)
    assert read_rows(tmp_path / "deep" / "rows.jsonl") == rows
    assert "включи свет" in (tmp_path / "deep" / "rows.jsonl").read_text(encoding="utf-8")
    write_json(tmp_path / "one.json", rows)
    assert read_json(tmp_path / "one.json") == rows


def test_half_a_character_is_written_as_its_escape_and_read_back(tmp_path: Path) -> None:
    rows = [{"text": "лампа \ud83d", "\udc00": ["💡"]}]
    write_rows(tmp_path / "rows.jsonl", rows)
    write_json(tmp_path / "one.json", rows)
    assert read_rows(tmp_path / "rows.jsonl") == read_json(tmp_path / "one.json") == rows
    assert hash_of(rows) != hash_of([])


def test_a_write_that_fails_leaves_the_file_before_and_nothing_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "rows.jsonl"
    write_rows(place, [{"a": 1}])

    def rows() -> object:
        yield {"a": 2}
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_rows(place, rows())  # type: ignore[arg-type]
    assert read_rows(place) == [{"a": 1}]
    assert names(tmp_path) == ["rows.jsonl"]


def test_who_reads_while_a_file_is_written_sees_the_whole_file_before(tmp_path: Path) -> None:
    place = tmp_path / "one.json"
    write_json(place, {"before": True})
    with written_whole(place) as beside:
        beside.write_text("after")
        assert read_json(place) == {"before": True}
    with place.open(encoding="utf-8") as reader:
        write_json(place, 2)
        assert reader.read() == "after", "a file that is open is never written into"


def test_a_full_disk_is_a_user_error_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "one.json"
    write_json(place, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write .*one\.json: No space left on device") as told:
            write_json(place, 2)
    assert "disk space" in told.value.hint
    assert read_json(place) == 1
    assert names(tmp_path) == ["one.json"]


def test_a_place_that_no_file_can_have_is_a_user_error(tmp_path: Path) -> None:
    write_json(tmp_path / "file", 1)
    with pytest.raises(UserError, match="cannot write"):
        write_json(tmp_path / "file" / "below.json", 2)


def test_without_room_for_the_file_beside_it_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.tempfile, "mkstemp", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_json(tmp_path / "one.json", 1)


def test_a_writer_that_is_killed_leaves_the_file_before(tmp_path: Path) -> None:
    place = tmp_path / "one.json"
    write_json(place, {"whole": True})
    program = dedent(f"""
        import os, signal
        from pathlib import Path
        from supertiny.core.files import written_whole
        with written_whole(Path({str(place)!r})) as beside:
            beside.write_text('{{"who')
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    ended = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": "src"}, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert read_json(place) == {"whole": True}
    with written_whole(place) as beside:
        beside.write_text("2")
    assert read_json(place) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1}\n\n{"a": \n', r"rows\.jsonl:3: broken JSON: .* column \d+"),
        ('{"a": 1}\n[1]\n', r"rows\.jsonl:2: a row must be a JSON object; found list"),
        (b"\xff\xfe", r"is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(text: str | bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=told):
        read_rows(tmp_path / "rows.jsonl")


def test_files_that_are_not_there_or_broken_are_told(tmp_path: Path) -> None:
    for read in (read_rows, read_json):
        with pytest.raises(UserError, match=r"gone\.json is not there"):
            read(tmp_path / "gone.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json: broken JSON"):
        read_json(tmp_path / "broken.json")


def test_hashes(tmp_path: Path) -> None:
    assert hash_of({"a": 1, "b": [2, "灯"]}) == hash_of({"b": [2, "灯"], "a": 1})
    assert hash_of({"a": 1}) != hash_of({"a": "1"})
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
