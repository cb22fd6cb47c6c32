"""What the project cost, when that is earned back, and how sure the differences between answerers are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from supertiny.core.ledger import Bill
from supertiny.core.scoring import paired_bootstrap

PAIRS = (
    ("pipeline", "plain_prompt"),
    ("student", "labelled_only"),
    ("student", "pipeline"),
    ("artifact", "student"),
    ("artifact", "pipeline"),
)
# A purpose with one of these words measures the result and is no part of making it.
_MEASURING = re.compile(r"\b(report|test)\b")
_TRAINING = {"transfer": "training the student", "compress": "compressing and exporting"}


def differences(hits: Mapping[str, Sequence[bool]], seed: int) -> list[dict[str, Any]]:
    """Left minus right in exact calls, on the same rows, with 95 % intervals by paired bootstrap."""
    found = []
    for left, right in PAIRS:
        if left in hits and right in hits:
            mean, low, high = paired_bootstrap(hits[left], hits[right], seed)
            row = {"left": left, "right": right, "metric": "exact", "mean": mean, "low": low, "high": high}
            found.append({**row, "n": len(hits[left])})
    return found


def project_costs(
    bills: Sequence[Bill], lost: Sequence[Bill], stages: Mapping[str, Mapping[str, Any]], dollars_per_hour: float
) -> dict[str, Any]:
    """Every model call by purpose, and the time of training and compressing.

    `lost` are tries that may have been billed and gave no answer, at their worst: they are said apart, and counted.
    `one_off` marks what making the artifact took; measuring on test is listed and not counted. Calls without a
    price of their own are priced as machine time.
    """
    items: list[dict[str, Any]] = []
    names = [(bill.purpose, bill) for bill in bills]
    names += [(f"{bill.purpose}: tries without an answer, at most", bill) for bill in lost]
    for name, bill in names:
        hourly = bill.seconds / 3600 * dollars_per_hour
        items.append(
            {
                "name": name,
                "kind": "model calls",
                "calls": bill.calls,
                "tokens_in": bill.tokens_in,
                "tokens_out": bill.tokens_out,
                "seconds": bill.seconds,
                "dollars": bill.dollars if bill.dollars > 0 else hourly,
                "one_off": _MEASURING.search(bill.purpose) is None,
            }
        )
    for stage, title in _TRAINING.items():
        if stage in stages:
            seconds = float(stages[stage].get("seconds", 0.0))
            priced = {"seconds": seconds, "dollars": seconds / 3600 * dollars_per_hour, "one_off": True}
            items.append({"name": title, "kind": "machine time", **priced})
    counted = [item for item in items if item["one_off"]]
    return {
        "dollars_per_hour": dollars_per_hour,
        "items": items,
        "one_off_dollars": sum(item["dollars"] for item in counted),
        "one_off_seconds": sum(item["seconds"] for item in counted),
        "one_off_call_dollars": sum(item["dollars"] for item in counted if item["kind"] == "model calls"),
    }


def step_prices(summary: Mapping[str, Any], dollars_per_hour: float) -> list[dict[str, Any]]:
    """What each step of the pipeline took per request of the pool, by the prototype stage's `summary`.

    Calls without a price of their own are priced as machine time. A step without calls costs nothing.
    """
    rows = int(summary.get("pool_rows") or 0)
    spent: Mapping[str, Mapping[str, Any]] = summary.get("costs_by_step", {}).get("pipeline on the pool", {})
    if not rows:
        return []
    prices = []
    for name, step in spent.items():
        cost = step["cost"]
        dollars = cost["dollars"] or cost["seconds"] / 3600 * dollars_per_hour
        whole = {"calls": step["calls"], **{key: cost[key] for key in ("tokens_in", "tokens_out", "seconds")}}
        prices.append({"name": name, **{key: value / rows for key, value in whole.items()}, "dollars": dollars / rows})
    return prices


def break_even(answerers: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Requests after which the project has paid for itself: one-off dollars / (pipeline - artifact) per request.

    Sensitivity: the teacher at half and at twice its price, in labelling as in answering, while the machine that
    trains and serves keeps its own. `requests` is None where the artifact is not the cheaper one.
    """
    if "pipeline" not in answerers or "artifact" not in answerers:
        return None
    pipeline = answerers["pipeline"]["dollars_per_1000"] / 1000
    artifact = answerers["artifact"]["dollars_per_1000"] / 1000
    calls = costs["one_off_call_dollars"]
    rest = costs["one_off_dollars"] - calls
    scenarios = []
    for factor in (0.5, 1.0, 2.0):
        saved = factor * pipeline - artifact
        one_off = factor * calls + rest
        requests = one_off / saved if saved > 0 else None
        scenarios.append({"teacher_price_factor": factor, "one_off_dollars": one_off, "requests": requests})
    return {
        "requests": scenarios[1]["requests"],
        "one_off_dollars": costs["one_off_dollars"],
        "pipeline_dollars_per_request": pipeline,
        "artifact_dollars_per_request": artifact,
        "sensitivity": scenarios,
    }


def prompt_saving(answerers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """How much shorter the prompt is of the one who learned the tools than of those who are told them each time."""
    short = next((name for name in ("artifact", "student") if answerers.get(name, {}).get("tokens_in")), None)
    if short is None or not answerers.get("pipeline", {}).get("tokens_in"):
        return None
    told, learned = answerers["pipeline"]["tokens_in"], answerers[short]["tokens_in"]
    plain = answerers.get("plain_prompt", {}).get("tokens_in")
    return {
        "pipeline_tokens_in": told,
        "plain_prompt_tokens_in": plain,
        "learned_by": short,
        "learned_tokens_in": learned,
        "times_fewer": told / learned,
    }
