"""Where a data set's rows are: a file, a folder of files, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from supertiny.core.errors import UserError, nearest_word
from supertiny.core.files import read_json
from supertiny.core.tables import SUFFIXES, Table, class_names, joined, read_table

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_CONVERTED = "refs/convert/parquet"  # the branch where the hub keeps every data set as Parquet
_NETWORK = ("httpx", "requests", "urllib3")  # whose errors mean that the hub was not reached
_OTHER_SPLIT = re.compile(r"(^|[^a-z])(test|valid|validation|dev)([^a-z]|$)")
_CARD, _INFO = "README.md", "dataset_info.json"
_NO_DATA = (_INFO, "dataset_dict.json", "state.json", "dataset_infos.json", "package.json", "tools.json")


def read_dataset(source: str, split: str = "train", config: str = "") -> Table:
    """The rows of one split. `source` is a file, a folder, or `owner/name` on the hub; `config` a subset's folder.

    A folder's or repository's split is the files that bear its name, or the only data file that there is. Raises
    UserError where nothing is found, the hub is out of reach, or Parquet cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return read_table(path)
    if path.is_dir():
        names = [str(file.relative_to(path).as_posix()) for file in sorted(path.rglob("*")) if file.is_file()]
        return _read(source, names, split, config, path.joinpath)
    if path.suffix.lower() in SUFFIXES or not _NAME.fullmatch(source):
        raise UserError(f"{source} is not there", "give a file, a folder, or a data set's name on the hub: owner/name")
    names, fetch = _on_hub(source)
    return _read(source, names, split, config, fetch)


def _read(source: str, names: Sequence[str], split: str, config: str, fetch: Callable[[str], Path]) -> Table:
    chosen = files_of_split(source, names, split, config)
    table = joined([read_table(fetch(name)) for name in chosen], source)
    labels: dict[str, Sequence[str]] = {}
    if _CARD in names:
        labels |= _names_in_card(fetch(_CARD), config)
    for name in names:
        if PurePosixPath(name).name == _INFO:
            info = read_json(fetch(name))
            labels |= class_names(info.get("features") if isinstance(info, dict) else None)
    return replace(table, labels={**labels, **table.labels})


def files_of_split(source: str, names: Iterable[str], split: str, config: str = "") -> list[str]:
    """The data files of one split, in order. Raises UserError that names what there is."""
    data = [name for name in names if name.lower().endswith(SUFFIXES) and PurePosixPath(name).name not in _NO_DATA]
    if not data:
        raise UserError(f"{source} holds no file of rows", "known: " + ", ".join(SUFFIXES))
    configs = {folder for name in data for folder in PurePosixPath(name).parts[:-1]}
    if config:
        data = [name for name in data if config in PurePosixPath(name).parts[:-1]]
        if not data:
            raise UserError(f"{source} has no subset {config!r}", nearest_word(config, configs or {"(none)"}))
    bears = re.compile(rf"(^|[^a-z]){re.escape(split.lower())}([^a-z]|$)")
    chosen = [name for name in data if bears.search(name.lower())]
    if not chosen and (len(data) > 1 or _OTHER_SPLIT.search(data[0].lower())):
        raise UserError(f"{source} has no file of the split {split!r}", "it has " + ", ".join(sorted(data)[:10]))
    chosen = chosen or data
    kinds = {PurePosixPath(name).suffix.lower() for name in chosen}
    if len(kinds) > 1:  # the same rows in several kinds: the one that needs least to be read
        first = next(suffix for suffix in SUFFIXES if suffix in kinds)
        chosen = [name for name in chosen if name.lower().endswith(first)]
    folders = {str(PurePosixPath(name).parent) for name in chosen}
    if len(folders) > 1:
        hint = "name one with --config: " + ", ".join(sorted(folders)[:10])
        raise UserError(f"{source} has the split {split!r} in several subsets", hint)
    return sorted(chosen)


def _names_in_card(card: Path, config: str) -> dict[str, list[str]]:
    """Class names in the YAML at the head of a data set's README."""
    text = card.read_text(encoding="utf-8", errors="replace")
    head = text.split("\n---", 1)[0].removeprefix("---") if text.startswith("---") else ""
    try:
        info: Any = (yaml.safe_load(head) or {}).get("dataset_info")
    except (yaml.YAMLError, AttributeError):
        return {}  # a card is for people: what it does not say, it does not say
    blocks = info if isinstance(info, list) else [info]
    found: dict[str, list[str]] = {}
    for block in blocks:
        if isinstance(block, dict) and (not config or block.get("config_name", config) == config):
            found |= class_names(block.get("features"))
    return found


def _on_hub(name: str) -> tuple[list[str], Callable[[str], Path]]:
    """The files of a repository of data, and what fetches one of them into the hub's own cache."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    revision: str | None = None

    def asked(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (RepositoryNotFoundError, HFValidationError) as error:
            hint = "look it up on the hub; a private one needs `hf auth login`"
            problem = f"there is no file {name}, and no data set {name!r} on the hub that you may read"
            raise UserError(problem, hint) from error
        except Exception as error:
            if not isinstance(error, OSError) and not type(error).__module__.startswith(_NETWORK):
                raise
            reason = " ".join(str(error).split())[:200]
            hint = "fetch its files where there is a network, and give their folder"
            raise UserError(f"the hub does not give {name}: {reason}", hint) from error

    names = asked(lambda: HfApi().list_repo_files(name, repo_type="dataset"))
    if not any(file.lower().endswith(SUFFIXES) and PurePosixPath(file).name not in _NO_DATA for file in names):
        revision = _CONVERTED
        names = asked(lambda: HfApi().list_repo_files(name, repo_type="dataset", revision=revision))

    def fetch(file: str) -> Path:
        return Path(asked(lambda: hf_hub_download(name, file, repo_type="dataset", revision=revision)))

    return list(names), fetch
