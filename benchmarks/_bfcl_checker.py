"""Runs the leaderboard's own checker, alone, in a Python that has bfcl-eval: python _bfcl_checker.py IN OUT.

IN holds a JSON list of {"category", "functions", "calls": [{NAME: ARGUMENTS}], "answers"}; OUT gets a list of
{"valid", "reason"}. Nothing of supertiny is imported, so that the package's own requirements stay in its environment.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

_MODELS = "bfcl_eval.constants.model_config"
_NAME = "supertiny"  # how the checker is told that dots in function names stand as they are


def load() -> tuple[Any, Any]:
    """(ast_checker, the language that it checks)."""
    try:
        models = importlib.import_module(_MODELS)
    except ImportError:  # it imports the clients of every hosted model, which the checker does not use
        models = ModuleType(_MODELS)
        models.MODEL_CONFIG_MAPPING = {}  # type: ignore[attr-defined]
        sys.modules[_MODELS] = models
    models.MODEL_CONFIG_MAPPING[_NAME] = SimpleNamespace(underscore_to_dot=False)
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
    return checker, importlib.import_module("bfcl_eval.constants.enums").Language.PYTHON


def verdict(row: dict[str, Any], checker: Any, language: Any) -> dict[str, Any]:
    """A request that no function serves is right without a call; all others are the checker's."""
    if row["category"] == "irrelevance":
        return {"valid": not row["calls"], "reason": "a call was made" if row["calls"] else ""}
    if not row["calls"]:
        return {"valid": False, "reason": "no call was made"}
    told = checker(row["functions"], row["calls"], row["answers"], language, row["category"], _NAME)
    return {"valid": bool(told["valid"]), "reason": "" if told["valid"] else str(told.get("error"))}


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    checker, language = load()
    rows = json.loads(source.read_text(encoding="utf-8"))
    verdicts = [verdict(row, checker, language) for row in rows]
    target.write_text(json.dumps(verdicts, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
