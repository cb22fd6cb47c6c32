"""What stands in the files that learners name is part of the stage's key, also when they are gone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserError
from supertiny.core.files import write_json
from supertiny.core.methods import validated
from supertiny.training import named_files as naming
from supertiny.training.named_files import FILES, named_files
from supertiny.transfer.settings import Settings


def settings(**chosen: Any) -> Settings:
    made: Settings = validated(Settings, chosen, "transfer")
    return made


def reads(chosen: Settings, done: Path | None = None) -> dict[str, str]:
    return named_files(chosen, "transfer", done)


@pytest.mark.parametrize("part", ["learners", "labelled_only"])
@pytest.mark.parametrize(
    ("method", "setting", "is_folder"),
    [("continual", "replay", False), ("continual", "domain", False), ("contrast", "amateur", True)],
)
def test_another_content_is_read_as_another(
    part: str, method: str, setting: str, is_folder: bool, tmp_path: Path
) -> None:
    place, done = tmp_path / "named", tmp_path / "transfer"
    file = place / "weights" / "model.safetensors" if is_folder else place
    file.parent.mkdir(parents=True, exist_ok=True)
    chosen = settings(**{part: ["imitate", {"method": method, setting: str(place)}]})
    found = []
    for second, content in enumerate(("one", "two", "one")):
        file.write_text(content, encoding="utf-8")
        os.utime(file, (second, second))  # two writes may fall into one tick of the file system
        found.append(reads(chosen))
    assert found[0] == found[2] != found[1]
    assert list(found[0]) == [str(place)]
    if is_folder:
        file.rename(file.with_name("other.safetensors"))
        assert reads(chosen) != found[0]
        shutil.rmtree(place)
    else:
        file.unlink()
    write_json(done / FILES, found[1])
    assert reads(chosen, done) == found[1], "what is gone counts as it was read"
    with pytest.raises(UserError, match=rf"transfer\.{part}\.1\.{setting}: {place} is not there"):
        reads(chosen)


def test_who_names_no_file_reads_none() -> None:
    assert reads(settings(learners=["imitate", {"method": "continual"}])) == {}


def test_every_file_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(naming, "sha256_of", refused)
    (tmp_path / "a").touch()
    write_json(tmp_path / FILES, {str(tmp_path / "a"): "0"})
    chosen = settings(learners=[{"method": "continual", "replay": str(tmp_path / "a"), "domain": str(tmp_path / "b")}])
    with pytest.raises(
        UserError, match=r"0\.replay: .*/a cannot be read: Permission.*; .*0\.domain: .*/b is not there"
    ):
        reads(chosen, tmp_path)
