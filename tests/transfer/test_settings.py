"""What stands in the files that learners name is part of the stage's key; what is not there is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of
from supertiny.core.methods import validated
from supertiny.pipeline import _hashed
from supertiny.transfer.settings import Settings


def key_of(**chosen: Any) -> str:
    return hash_of(_hashed(validated(Settings, chosen, "transfer")))


@pytest.mark.parametrize("part", ["learners", "labelled_only"])
@pytest.mark.parametrize(
    ("method", "setting", "is_folder"),
    [("continual", "replay", False), ("continual", "domain", False), ("contrast", "amateur", True)],
)
def test_another_content_is_another_key(part: str, method: str, setting: str, is_folder: bool, tmp_path: Path) -> None:
    named = tmp_path / "named"
    file = named / "weights" / "model.safetensors" if is_folder else named
    file.parent.mkdir(parents=True, exist_ok=True)
    chosen = {part: ["imitate", {"method": method, setting: str(named)}]}
    keys = []
    for content in ("one", "two", "one"):
        file.write_text(content, encoding="utf-8")
        keys.append(key_of(**chosen))
    assert keys[0] == keys[2] != keys[1]
    if is_folder:
        file.rename(file.with_name("other.safetensors"))
        assert key_of(**chosen) != keys[0]


def test_who_names_no_file_keeps_the_key_of_before() -> None:
    plain = validated(Settings, {"learners": ["imitate", {"method": "continual"}]}, "transfer")
    assert plain.files == {}
    assert "files" not in _hashed(plain)


def test_files_that_are_not_there_are_told_before_anything_is_done(tmp_path: Path) -> None:
    blocks = [{"method": "continual", "replay": str(tmp_path / "a"), "domain": str(tmp_path / "b")}]
    with pytest.raises(UserError, match=r"learners\.0\.replay: .*/a is not there; learners\.0\.domain: .*/b is not"):
        key_of(learners=blocks)


def test_the_field_is_found_and_never_given_and_hides_no_other_mistake() -> None:
    with pytest.raises(UserError, match="`files` is found from what learners name"):
        key_of(files={"learners.0.replay": "x"})
    with pytest.raises(UserError, match=r"transfer\.learners\.0.*there is no setting 'reply'"):
        key_of(learners=[{"method": "continual", "reply": "x"}])
