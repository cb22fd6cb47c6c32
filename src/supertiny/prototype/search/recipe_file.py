"""Writes a chosen pipeline into a recipe: the lines that hold it are replaced, all others stay as they are."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from supertiny.core.errors import UserError
from supertiny.core.files import write_text
from supertiny.prototype.settings import Settings

SECTION = "prototype"


def as_yaml(block: Mapping[str, Any]) -> str:
    """The settings as they may be pasted into a recipe, a line each."""
    lines = [f"  {name}: {_flow(value)}" for name, value in block.items()]
    return "\n".join([f"{SECTION}:", *lines]) + "\n"


def unsaid(path: Path, block: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the block that a recipe's file does not say by itself, and its steps in any case."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    said = values.get(SECTION) if isinstance(values, Mapping) else None
    known = {**vars(Settings()), **(said if isinstance(said, Mapping) else {})}
    return {name: value for name, value in block.items() if name == "steps" or _whole(value) != _whole(known.get(name))}


def _whole(value: Any) -> Any:
    """A method by its name alone, as a block."""
    return {"method": value} if isinstance(value, str) else value


def write_into(path: Path, block: Mapping[str, Any]) -> str:
    """Sets these settings under `prototype` of a recipe; gives what changed as a unified diff.

    The recipe as it was is kept beside it, with `.bak` behind its name. Raises UserError where the file is written in a
    way that cannot be edited safely; it is untouched then.
    """
    old = path.read_text(encoding="utf-8")
    if _says(old, old, block):
        return ""
    new = _edited(old, block)
    if new is None or not _says(new, old, block):
        raise UserError(f"{path}: its section {SECTION} is not written in a way that can be edited", "paste it instead")
    backup = path.with_name(f"{path.name}.bak")
    write_text(backup, old)
    write_text(path, new)
    changed = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), backup.name, path.name, n=1
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in changed)


def _says(new: str, old: str, block: Mapping[str, Any]) -> bool:
    """Whether an edited recipe holds the block, and all else that it held before."""
    known = yaml.safe_load(old) or {}
    if not isinstance(known, dict) or not isinstance(known.get(SECTION) or {}, dict):
        return False
    wanted = {**known, SECTION: {**(known.get(SECTION) or {}), **block}}
    try:
        return bool(yaml.safe_load(new) == wanted)
    except yaml.YAMLError:
        return False


def _edited(text: str, block: Mapping[str, Any]) -> str | None:
    """The recipe's text with these settings in place of its own; None where no mapping is found to edit."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, MappingNode):
        return None
    entry = _entry(root, SECTION)
    if entry is None:
        return text + ("" if text.endswith("\n") or not text else "\n") + "\n" + as_yaml(block)
    found = entry[1]
    if isinstance(found, ScalarNode) and found.value == "":  # `prototype:` with nothing behind it
        place = found.start_mark.index
        indented = "".join(f"\n  {name}: {_flow(value)}" for name, value in block.items())
        return text[:place] + indented + text[place:]
    if not isinstance(found, MappingNode):
        return None
    changes: list[tuple[int, int, str]] = []  # from, to, what stands there instead
    added = []
    for name, value in block.items():
        known = _entry(found, name)
        if known is not None:
            changes.append(_replacement(text, *known, _flow(value)))
        else:
            added.append(f"{name}: {_flow(value)}")
    if added:
        changes.append(_insertion(found, added))
    for start, end, instead in sorted(changes, key=lambda change: change[0], reverse=True):
        text = text[:start] + instead + text[end:]
    return text


def _replacement(text: str, key: Node, value: Node, flow: str) -> tuple[int, int, str]:
    """From the colon behind the key to the value's end; a comment on the key's line stays."""
    start = text.index(":", key.end_mark.index) + 1
    end = start + len(text[start : _end(value)].rstrip())
    rest = text[start : max(start, min(end, value.start_mark.index))].partition("\n")[0].strip()
    return start, end, f" {flow}" + (f"  {rest}" if rest.startswith("#") else "")


def _end(value: Node) -> int:
    """Where a value ends; a block's own mark stands behind the comments and empty lines that follow it."""
    if isinstance(value, CollectionNode) and not value.flow_style and value.value:
        last = value.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(value.end_mark.index)


def _insertion(mapping: MappingNode, lines: Sequence[str]) -> tuple[int, int, str]:
    """New first entries of a mapping."""
    if mapping.flow_style:
        place = mapping.start_mark.index + 1
        return place, place, ", ".join([*lines, *([""] if mapping.value else [])])
    first = mapping.value[0][0].start_mark
    return first.index, first.index, "".join(f"{line}\n{' ' * first.column}" for line in lines)


def _entry(mapping: MappingNode, key: str) -> tuple[Node, Node] | None:
    return next(((name, value) for name, value in mapping.value if name.value == key), None)


class _OneLine(yaml.SafeDumper):
    """Writes texts of several lines within quotes, with escapes."""


_OneLine.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if "\n" in text else None),
)


def _flow(value: Any) -> str:
    """A value on one line, as people write blocks in recipes."""
    text = yaml.dump(
        value, Dumper=_OneLine, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text.removesuffix("\n").removesuffix("\n...")
