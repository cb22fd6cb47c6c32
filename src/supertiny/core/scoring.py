"""How good an answer is: exact calls, argument F1, similarity to gold, and intervals that say how sure that is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq

from supertiny.core.records import Answer, Call, Tool


def plain_value(value: Any, schema: Mapping[str, Any] | None = None) -> Any:
    """An argument as it is compared: 67, 67.0 and "67" are one number where the schema says number."""
    schema, kinds = _shape(schema)
    numeric = "number" in kinds or "integer" in kinds
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and numeric:
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value  # whole numbers as int: floats would confuse long ones
    if isinstance(value, Mapping):
        inner = schema.get("properties", {})
        return {key: plain_value(item, inner.get(key)) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain_value(item, schema.get("items")) for item in value]
    return value


def typed(answer: Answer, tools: Mapping[str, Tool]) -> Answer:
    """The answer with arguments of the kinds that the schemas name: a bare 12345 is text where a string is wanted."""
    calls = [
        Call(call.tool, _typed(call.arguments, tools[call.tool].parameters)) if call.tool in tools else call
        for call in answer.calls
    ]
    return replace(answer, calls=tuple(calls))


def _shape(schema: Any) -> tuple[Mapping[str, Any], list[Any]]:
    """A schema and the types that it admits; of `anyOf` and `oneOf`, what their parts say together."""
    if not isinstance(schema, Mapping):
        return {}, [None]  # JSON Schema may be `true` as well
    wanted = schema.get("type")
    if wanted is not None:
        return schema, wanted if isinstance(wanted, list) else [wanted]
    merged, kinds = dict(schema), list[Any]()
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        inner, more = _shape(part)
        merged = {**{key: inner[key] for key in ("properties", "items") if key in inner}, **merged}
        kinds += more
    return merged, kinds or [None]


def _typed(value: Any, schema: Any) -> Any:
    schema, kinds = _shape(schema)
    if isinstance(value, Mapping):
        inner = schema.get("properties", {})
        return {key: _typed(item, inner.get(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item, schema.get("items")) for item in value]
    if isinstance(value, str):
        return value if "string" in kinds else plain_value(value, schema)
    return json.dumps(value) if "string" in kinds and not _is_one_of(value, kinds) else value


def _is_one_of(value: Any, kinds: Collection[Any]) -> bool:
    if value is None or isinstance(value, bool):
        return ("null" if value is None else "boolean") in kinds
    return "number" in kinds or "integer" in kinds


def plain_call(call: Call, tools: Mapping[str, Tool]) -> tuple[str, str]:
    """(tool, canonical JSON of its arguments): equal for calls that mean the same."""
    schema = tools[call.tool].parameters if call.tool in tools else {}
    arguments = plain_value(call.arguments, schema)
    return call.tool, json.dumps(arguments, sort_keys=True, ensure_ascii=False)


def exact(predicted: Sequence[Call], gold: Sequence[Call], tools: Mapping[str, Tool]) -> bool:
    """Whether both are the same calls, in any order."""
    return Counter(plain_call(c, tools) for c in predicted) == Counter(plain_call(c, tools) for c in gold)


def is_exact(answer: Answer, gold: Sequence[Call], tools: Mapping[str, Tool]) -> bool:
    """Whether an answer is exactly the gold one; what nobody could read is no "no call"."""
    return answer.readable and exact(answer.calls, gold, tools)


def argument_counts(predicted: Sequence[Call], gold: Sequence[Call], tools: Mapping[str, Tool]) -> tuple[int, int, int]:
    """(shared, predicted, gold) numbers of (tool, argument, value) items; micro-averaged they give argument F1.

    A call counts as an item of its own, so that calls without arguments count too.
    """
    left, right = _items(predicted, tools), _items(gold, tools)
    return (left & right).total(), left.total(), right.total()


def _items(calls: Sequence[Call], tools: Mapping[str, Tool]) -> Counter[tuple[str, str, str]]:
    items: Counter[tuple[str, str, str]] = Counter()
    for call in calls:
        items[(call.tool, "", "")] += 1
        for name, value in json.loads(plain_call(call, tools)[1]).items():
            items[(call.tool, name, json.dumps(value, sort_keys=True))] += 1
    return items


def f1(shared: int, predicted: int, gold: int) -> float:
    return 2 * shared / (predicted + gold) if predicted + gold else 1.0


def similarity(predicted: Sequence[Call], gold: Sequence[Call], tools: Mapping[str, Tool]) -> float:
    """0..1: sum of the similarity of matched calls over the size of the union of calls.

    Calls match within equal function names, best pairs first. Paper: STAR, 2026, arXiv:2602.03022; with a
    character-level longest common subsequence for strings, so that every script counts.
    """
    if not predicted and not gold:
        return 1.0
    pairs = sorted(
        ((_call_similarity(p, g, tools), i, j) for i, p in enumerate(predicted) for j, g in enumerate(gold)),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    left: set[int] = set()
    right: set[int] = set()
    total = 0.0
    for score, i, j in pairs:
        if predicted[i].tool == gold[j].tool and i not in left and j not in right:
            left.add(i)
            right.add(j)
            total += score
    return total / (len(predicted) + len(gold) - len(left))


def _call_similarity(predicted: Call, gold: Call, tools: Mapping[str, Tool]) -> float:
    if predicted.tool != gold.tool:
        return 0.0
    names = set(predicted.arguments) | set(gold.arguments)
    if not names:
        return 1.0
    schemas = tools[gold.tool].parameters.get("properties", {}) if gold.tool in tools else {}
    shared = set(predicted.arguments) & set(gold.arguments)
    scores = (_value_similarity(predicted.arguments[n], gold.arguments[n], schemas.get(n)) for n in shared)
    return sum(scores) / len(names)


def _value_similarity(predicted: Any, gold: Any, schema: Mapping[str, Any] | None) -> float:
    predicted, gold = plain_value(predicted, schema), plain_value(gold, schema)
    if isinstance(predicted, str) and isinstance(gold, str):
        longest = max(len(predicted) + len(gold), 1)
        return 2 * LCSseq.similarity(predicted, gold) / longest if predicted != gold else 1.0
    return float(json.dumps(predicted, sort_keys=True) == json.dumps(gold, sort_keys=True))


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share; (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    z, share = 1.959963984540054, hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the interval touches them; rounding must not push it past the share itself.
    return 0.0 if hits == 0 else float(centre - half), 1.0 if hits == n else float(centre + half)


def paired_bootstrap(
    left: Sequence[float], right: Sequence[float], seed: int, rounds: int = 10_000
) -> tuple[float, float, float]:
    """(mean, low, high) of left - right with its 95 % interval, rows drawn together.

    Raises ValueError where the two do not pair.
    """
    if len(left) != len(right) or not len(left):
        raise ValueError(f"cannot pair {len(left)} with {len(right)} rows")
    difference = np.asarray(left, float) - np.asarray(right, float)
    generator = np.random.default_rng(seed)
    means = np.empty(rounds)
    for start in range(0, rounds, 500):  # in blocks, so that memory stays small
        block = min(500, rounds - start)
        drawn = generator.integers(0, len(difference), (block, len(difference)))
        means[start : start + block] = difference[drawn].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)
