"""Answers from what was answered before: a run's ledger, or a JSON file of prompt text to completion.

Use when: a test or a demonstration must run without a model.
"""

from __future__ import annotations

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, read_json, sha256_of
from supertiny.core.ledger import call_key
from supertiny.core.protocols import Done, Engine
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores


@dataclass(frozen=True)
class Replay:
    """Settings of the engine."""

    source: str = ""
    """Path of a ledger (`.sqlite`) or of a JSON file `{"prompt text": "completion", ...}`; an opened file overrides it.

    A prompt's text is its own text, or where it has messages the last message's content followed by its own text.
    """

    serves = ()

    def open(self, model: Path | None = None) -> Engine:
        """Reads the file. Raises UserError where it is neither a ledger nor a mapping."""
        if model is None and not self.source:
            raise UserError("the replay engine has nothing to replay", "set `source` to a ledger or a JSON file")
        path = model or Path(self.source)
        if not path.is_file():
            raise UserError(f"{path} is not there")
        if path.suffix == ".json":
            return _MappingEngine(path)
        return _LedgerEngine(path)


class _ReplayEngine(ABC):
    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.price = Price()

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        """Raises UserError naming the first prompt that was never answered."""
        grammars = grammar or [None] * len(prompts)
        completions = []
        for index, (prompt, form) in enumerate(zip(prompts, grammars, strict=True)):
            found = self._find(prompt, sampling, form)
            if found is None:
                raise UserError(f"{self.path} has no answer to the prompt {_text(prompt)[-200:]!r}", "record it first")
            completions.append(found)
            if done is not None:
                done(index, found)
        return completions

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        raise UserError("replay has no model to score with", "openvino, torch and llama_cpp can score")

    def close(self) -> None:  # noqa: B027 - nothing is held open
        """Does nothing."""

    @abstractmethod
    def _find(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> Completion | None: ...


class _MappingEngine(_ReplayEngine):
    def __init__(self, path: Path) -> None:
        mapping = read_json(path)
        if not isinstance(mapping, Mapping) or not all(isinstance(text, str) for text in mapping.values()):
            raise UserError(f"{path} must be one JSON object of prompt text to completion text")
        super().__init__(path, f"replay/{path.stem}-{hash_of(mapping)[:16]}")
        self._mapping = mapping

    def _find(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> Completion | None:
        text = self._mapping.get(_text(prompt))
        return None if text is None else Completion(text, len(_text(prompt).split()), len(text.split()))


class _LedgerEngine(_ReplayEngine):
    def __init__(self, path: Path) -> None:
        super().__init__(path, f"replay/{path.stem}-{sha256_of(path)[:16]}")
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
                self._calls = dict(connection.execute("SELECT key, completion FROM calls"))
                self._engines = [row[0] for row in connection.execute("SELECT DISTINCT engine FROM calls")]
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path} is not a ledger: {error}") from None

    def _find(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> Completion | None:
        keys = (call_key(engine, prompt, sampling, grammar) for engine in self._engines)
        found = next((self._calls[key] for key in keys if key in self._calls), None)
        return None if found is None else Completion(**_plain(found))


def _plain(completion: str) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(completion)
    return plain


def _text(prompt: Prompt) -> str:
    return (str(prompt.messages[-1].get("content") or "") if prompt.messages else "") + prompt.text
