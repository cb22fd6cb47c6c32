"""What hosted models cost: a dated price file of the user's first, then the genai-prices package.

The price file is YAML, model -> date from which the price holds -> dollars per million tokens:

    some-model:
      2026-01-15: {in: 0.25, out: 2.0, cached: 0.025}

It stands at `$SUPERTINY_PRICES` or `~/.config/supertiny/prices.yaml`.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.records import Price

KINDS = ("in", "out", "cached")


def price_of(model: str, base_url: str, file: Path | None = None, on: date | None = None) -> Price | None:
    """Price of a model on the day `on` (today), zero on a machine of ours, None where nobody knows it.

    Raises UserErrors with every mistake of the price file and its place.
    """
    on = on or datetime.now(UTC).date()
    own = read_prices(file) if file else read_prices(_own_file()) if _own_file().is_file() else {}
    dated = {start: price for start, price in own.get(model, {}).items() if start <= on}
    if dated:
        return dated[max(dated)]
    return Price() if _is_local(base_url) else _published(model, base_url, on)


def _is_local(base_url: str) -> bool:
    """Whether an address is on this machine or in a private network, where nobody bills by the token."""
    host = urlsplit(base_url).hostname or ""
    if "." not in host and ":" not in host:
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def read_prices(path: Path) -> dict[str, dict[date, Price]]:
    """The prices of a file, by model and first day. Raises UserErrors with every mistake and its place."""
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(table, Mapping):
        raise UserError(f"{path}: must map models to dated prices; found {type(table).__name__}")
    errors: list[UserError] = []
    prices: dict[str, dict[date, Price]] = {}
    for model, dated in table.items():
        if not isinstance(dated, Mapping):
            errors.append(UserError(f"{path}: {model}: must map dates to prices; found {dated!r}"))
            continue
        for start, block in dated.items():
            mistake = _mistake(start, block)
            if mistake:
                errors.append(UserError(f"{path}: {model}.{start}: {mistake}"))
            else:
                cached = block.get("cached", block["in"])
                prices.setdefault(str(model), {})[start] = Price(block["in"], block["out"], cached)
    if errors:
        raise UserErrors(errors)
    return prices


def _mistake(start: Any, block: Any) -> str:
    if not isinstance(start, date) or isinstance(start, datetime):
        return "the key must be a date like 2026-01-15"
    if not isinstance(block, Mapping) or not {"in", "out"} <= set(block) <= set(KINDS):
        return f"must be {{in: DOLLARS, out: DOLLARS, cached: DOLLARS}} per million tokens; found {block!r}"
    for kind, dollars in block.items():
        if isinstance(dollars, bool) or not isinstance(dollars, int | float) or not 0 <= dollars < float("inf"):
            return f"{kind} must be dollars per million tokens; found {dollars!r}"
    return ""


def _own_file() -> Path:
    named = os.environ.get("SUPERTINY_PRICES")
    return Path(named).expanduser() if named else Path.home() / ".config/supertiny/prices.yaml"


def _published(model: str, base_url: str, on: date) -> Price | None:
    from genai_prices import Usage, calc_price  # late: its table of prices takes a while to build

    when = datetime(on.year, on.month, on.day, 12, tzinfo=UTC)

    def per_million(tokens: int = 1000, **usage: int) -> float:
        # A thousand tokens at a time: prices that rise with the length of a prompt start at the short ones' price.
        asked = Usage(**usage)
        answer = calc_price(asked, model, provider_api_url=base_url, genai_request_timestamp=when)
        return float(answer.total_price) * 1e6 / tokens

    try:
        return Price(
            per_million(input_tokens=1000),
            per_million(output_tokens=1000),
            per_million(input_tokens=1000, cache_read_tokens=1000),
        )
    except LookupError:
        return None
