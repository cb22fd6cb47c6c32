"""A process that asks a server through the ledger, for tests that end it by kill -9."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from supertiny.core.ledger import Budget, Ledger
from supertiny.core.records import Prompt, Sampling
from supertiny.engines.openai import OpenAI

ROOT = Path(__file__).parents[2]


def killed_when(
    ready: Callable[[], bool], url: str, place: Path, count: int, budget: Mapping[str, float], **settings: Any
) -> None:
    """Has `count` prompts completed in a process of its own, and kills it as soon as it is `ready`."""
    asked = {"url": url, "place": str(place), "count": count, "budget": dict(budget), "settings": settings}
    process = subprocess.Popen([sys.executable, "-m", "tests.engines.child", json.dumps(asked)], cwd=ROOT)
    while not ready():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.wait()


def complete(url: str, place: str, count: int, budget: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    prompts = [Prompt(({"role": "user", "content": f"light {number}"},)) for number in range(count)]
    ledger, prices = (
        Ledger(Path(place), Budget(**budget)),
        {"dollars_per_million_in": 10, "dollars_per_million_out": 40},
    )
    engine = OpenAI("small-one", url, **{**prices, **settings}).open()
    ledger.wrap(engine, "test").complete(prompts, Sampling(max_tokens=20))


if __name__ == "__main__":
    complete(**json.loads(sys.argv[1]))
