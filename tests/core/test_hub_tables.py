"""A data set's files are found by their split, in a folder or on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from supertiny.core.errors import UserError
from supertiny.core.hub_tables import files_of_split, read_dataset

ROW = json.dumps({"text": "x", "label": 1}) + "\n"
CARD = """---
license: mit
dataset_info:
- config_name: small
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': cold
          '1': hot
---
# About
"""


@pytest.mark.parametrize(
    ("names", "split", "config", "chosen"),
    [
        (["data/train-1.csv", "data/train-0.csv", "data/test-0.csv"], "train", "", "data/train-0.csv data/train-1.csv"),
        (["train.csv", "test.csv", "README.md"], "test", "", "test.csv"),
        (["rows.csv", "dataset_info.json"], "train", "", "rows.csv"),
        (["train.jsonl", "train.parquet"], "train", "", "train.jsonl"),
        (["en/train.csv", "de/train.csv"], "train", "de", "de/train.csv"),
        (["en/train/1.csv", "en/train/0.csv", "en/test/0.csv"], "train", "", "en/train/0.csv en/train/1.csv"),
    ],
)
def test_files_of_a_split(names: list[str], split: str, config: str, chosen: str) -> None:
    assert files_of_split("d", names, split, config) == chosen.split()


@pytest.mark.parametrize(
    ("names", "config", "words"),
    [
        (["README.md"], "", "d holds no file of rows (known: .csv"),
        (["test.csv"], "", "d has no file of the split 'train' (it has test.csv)"),
        (["a.csv", "b.csv"], "", "d has no file of the split 'train' (it has a.csv, b.csv)"),
        (["en/train.csv", "de/train.csv"], "", "in several subsets (name one with --config: de, en)"),
        (["en/train.csv", "de/train.csv"], "dee", "d has no subset 'dee' (did you mean 'de'?)"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(names: list[str], config: str, words: str) -> None:
    with pytest.raises(UserError) as told:
        files_of_split("d", names, "train", config)
    assert words in str(told.value)


def test_a_folder_with_a_card_that_names_the_classes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(ROW, encoding="utf-8")
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    assert read_dataset(str(tmp_path)).labels == {"label": ["cold", "hot"]}
    (tmp_path / "README.md").write_text("---\n: [\n---\n", encoding="utf-8")
    assert read_dataset(str(tmp_path)).labels == {}
    (tmp_path / "dataset_info.json").write_text('{"features": {"label": {"names": ["a", "b"]}}}', encoding="utf-8")
    assert read_dataset(str(tmp_path)).labels == {"label": ["a", "b"]}
    assert len(read_dataset(str(tmp_path / "data" / "train.jsonl")).rows) == 1


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    (tmp_path / "0000.jsonl").write_text(ROW, encoding="utf-8")

    def listed(self: Any, name: str, repo_type: str, revision: str | None = None) -> list[str]:
        asked.append((name, repo_type, revision))
        return ["script.py", "README.md"] if revision is None else ["default/train/0000.jsonl"]

    def fetched(name: str, file: str, repo_type: str, revision: str | None = None) -> str:
        asked.append((file, revision))
        return str(tmp_path / Path(file).name)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    table = read_dataset("owner/rows")
    assert len(table.rows) == 1
    converted = "refs/convert/parquet"
    assert asked == [
        ("owner/rows", "dataset", None),
        ("owner/rows", "dataset", converted),
        ("default/train/0000.jsonl", converted),
    ]


def test_a_hub_out_of_reach_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise huggingface_hub.errors.OfflineModeIsEnabled("no\nnetwork")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    with pytest.raises(UserError) as told:
        read_dataset("owner/rows")
    assert str(told.value).startswith("the hub does not give owner/rows: no network (fetch its files where")


@pytest.mark.parametrize("source", ["nowhere.csv", "no/such/folder", "a b", "./rows"])
def test_what_cannot_be_a_name_on_the_hub_is_not_asked_for(source: str) -> None:
    with pytest.raises(UserError, match="is not there"):
        read_dataset(source)
