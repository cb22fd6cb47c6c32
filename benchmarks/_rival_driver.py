"""Drives a chat server with another project's client: python _rival_driver.py NAME URL MODEL IN OUT.

IN holds a JSON list of conversations; OUT gets {"seconds", "texts", "version"}. Nothing of supertiny is imported, so
that each project keeps an environment of its own. Loading the project is not timed.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

MODULES = {"distilabel": "distilabel.models", "curator": "bespokelabs.curator"}
PACKAGES = {"distilabel": "distilabel", "curator": "bespokelabs-curator"}
MAX_TOKENS = 96
IN_FLIGHT = 64


def distilabel(url: str, model: str, conversations: list[Any]) -> tuple[float, list[str]]:
    """All conversations in one call of its OpenAI client, which sends them together."""
    language_model = importlib.import_module(MODULES["distilabel"]).OpenAILLM(model=model, base_url=url, api_key="none")
    language_model.load()
    started = time.perf_counter()
    outputs = language_model.generate_outputs(inputs=conversations, max_new_tokens=MAX_TOKENS, temperature=0.0)
    return time.perf_counter() - started, [str(output["generations"][0]) for output in outputs]


def curator(url: str, model: str, conversations: list[Any]) -> tuple[float, list[str]]:
    """A table of conversations through its LLM class, cache and telemetry off."""
    package = importlib.import_module(MODULES["curator"])

    class Ask(package.LLM):  # type: ignore[name-defined, misc]
        def prompt(self, row: dict[str, Any]) -> Any:
            return row["messages"]

        def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
            return {"place": row["place"], "text": response}

    limits = {"max_requests_per_minute": 100_000, "max_tokens_per_minute": 1_000_000_000}
    language_model = Ask(
        model_name=model,
        backend="openai",
        backend_params={"base_url": url, "api_key": "none", "max_concurrent_requests": IN_FLIGHT, **limits},
        generation_params={"max_tokens": MAX_TOKENS, "temperature": 0.0},
    )
    rows = [{"place": place, "messages": messages} for place, messages in enumerate(conversations)]
    started = time.perf_counter()
    made = language_model(rows)
    seconds = time.perf_counter() - started
    found = sorted(getattr(made, "dataset", made), key=lambda row: row["place"])
    return seconds, [str(row["text"]) for row in found]


def main() -> None:
    name, url, model, source, target = sys.argv[1:6]
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"CURATOR_CACHE_DIR": cache, "CURATOR_DISABLE_CACHE": "1", "TELEMETRY_ENABLED": "0"}
        os.environ.setdefault("OPENAI_API_KEY", "none")
        conversations = json.loads(Path(source).read_text(encoding="utf-8"))
        seconds, texts = {"distilabel": distilabel, "curator": curator}[name](url, model, conversations)
    report = {"seconds": seconds, "texts": texts, "version": metadata.version(PACKAGES[name])}
    Path(target).write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
