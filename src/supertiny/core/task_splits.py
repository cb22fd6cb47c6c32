"""Rows of a new task shared out over its splits: the same rows and seed give the same splits, and no split leaks."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of
from supertiny.core.leaks import asked_text, find_leaks, normalised
from supertiny.core.task_rows import SPLITS

SHARES: Mapping[str, float] = {"labelled": 0.15, "unlabelled": 0.45, "valid": 0.15, "test": 0.25}
FEWEST_ROWS = 8

TaskRow = dict[str, Any]
"""A row of a task's file: `text` or `messages`, and `calls`."""


def shared_out(
    rows: Sequence[TaskRow],
    seed: int,
    source: str,
    sizes: Mapping[str, int] | None = None,
    kind: Callable[[TaskRow], str] | None = None,
    test: Sequence[TaskRow] = (),
) -> dict[str, list[TaskRow]]:
    """Each request once, with its first answer; rows of one kind by the splits' shares; no split leaks into another.

    `sizes` are rows a split should get; the others share what is left, and a near-duplicate moves to the pool after
    that. A row's kind is the set of its functions where nothing else is said. Where rows of `test` are given, they are
    that split, and rows that are nearly the same are left out of the others. Raises UserError for too few rows.
    """
    hidden = _once(test)
    once = _unlike(_once(rows), hidden) if hidden else _once(rows)
    if len(once) < FEWEST_ROWS:
        raise UserError(f"{source} has {len(once)} different requests", f"a task needs at least {FEWEST_ROWS}")
    if hidden and "test" in (sizes or {}):
        raise UserError("sizes: test has rows of its own", "leave it out of the sizes")
    known = {split: share for split, share in SHARES.items() if split != "test" or not hidden}
    splits = _split(once, seed, _shares(len(once), sizes or {}, known, source), kind or _functions)
    return _without_leaks(splits | ({"test": hidden} if hidden else {}))


def _once(rows: Sequence[TaskRow]) -> list[TaskRow]:
    once: dict[str, TaskRow] = {}
    for row in rows:
        once.setdefault(normalised(_asked(row)), row)
    return list(once.values())


def _unlike(rows: Sequence[TaskRow], hidden: Sequence[TaskRow]) -> list[TaskRow]:
    """The rows that are not nearly the same as one of `hidden`."""
    learned, asked_for = ({str(number): _asked(row) for number, row in enumerate(some)} for some in (rows, hidden))
    alike = {int(leak.left) for leak in find_leaks(learned, asked_for)}
    return [row for number, row in enumerate(rows) if number not in alike]


def _asked(row: TaskRow) -> str:
    return asked_text(_messages(row))


def _messages(row: TaskRow) -> Sequence[Mapping[str, Any]]:
    messages: Sequence[Mapping[str, Any]] = row.get("messages") or [{"role": "user", "content": row["text"]}]
    return messages


def _functions(row: TaskRow) -> str:
    return ",".join(sorted(call["name"] for call in row["calls"]))


def _shares(count: int, sizes: Mapping[str, int], known: Mapping[str, float], source: str) -> dict[str, float]:
    """Each split's share of the rows; of `known`, those whose sizes are not said share what is left."""
    rest = {split: share for split, share in known.items() if split not in sizes}
    left = count - sum(sizes.values())
    if left < len(rest):
        asked_for = ", ".join(f"{split} {rows}" for split, rows in sizes.items())
        raise UserError(f"{source} has {count} different requests, too few for {asked_for}", "ask for fewer")
    shares = dict.fromkeys(SPLITS, 0.0) | {split: rows / count for split, rows in sizes.items()}
    return shares | {split: left / count * share / sum(rest.values()) for split, share in rest.items()}


def _split(
    rows: Sequence[TaskRow], seed: int, shares: Mapping[str, float], kind_of: Callable[[TaskRow], str]
) -> dict[str, list[TaskRow]]:
    """Rows shared out within each kind, so that every split knows the frequent ones."""
    rng = random.Random(seed)
    kinds: dict[str, list[TaskRow]] = {}
    for row in sorted(rows, key=lambda row: hash_of(_messages(row))):
        kinds.setdefault(kind_of(row), []).append(row)
    splits: dict[str, list[TaskRow]] = {split: [] for split in SPLITS}
    total = 0
    for kind in sorted(kinds, key=lambda kind: -len(kinds[kind])):
        rng.shuffle(kinds[kind])
        for row in kinds[kind]:  # to the split that is farthest behind its share
            total += 1
            behind = {split: shares[split] * total - len(splits[split]) for split in SPLITS}
            farthest = max(SPLITS, key=lambda split: behind[split])
            if behind[farthest] > 0:  # where all sizes are said, more rows than that are left out
                splits[farthest].append(row)
    return splits


def _without_leaks(splits: dict[str, list[TaskRow]]) -> dict[str, list[TaskRow]]:
    """Moves what is nearly the same as rows that are learned from to the pool, and twins of valid rows out of test."""
    ways = (
        ("valid", ("labelled", "unlabelled"), "unlabelled"),
        ("test", ("labelled", "unlabelled"), "unlabelled"),
        ("test", ("valid",), "valid"),
    )
    changed = True
    while changed:  # ends: rows move towards the pool alone
        changed = False
        for judged, against, to in ways:
            learned = {f"{s}:{n}": _asked(r) for s in against for n, r in enumerate(splits[s])}
            texts = {str(n): _asked(row) for n, row in enumerate(splits[judged])}
            moved = {int(leak.left) for leak in find_leaks(texts, learned)}
            splits[to] += [row for n, row in enumerate(splits[judged]) if n in moved]
            splits[judged] = [row for n, row in enumerate(splits[judged]) if n not in moved]
            changed = changed or bool(moved)
    for split in SPLITS:
        if not splits[split]:
            raise UserError(f"the requests are too alike: nothing is left for {split!r}", "bring more varied rows")
    return splits
