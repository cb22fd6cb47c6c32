"""Log-probabilities of given texts after given prompts: one batch of the engine, each pair scored once per run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from supertiny.core.files import hash_of
from supertiny.core.ledger import LedgerEngine
from supertiny.core.protocols import Engine
from supertiny.core.records import Completion, Prompt, Sampling

_BATCH = 1024  # pairs handed to an engine at once, so that the budget is looked at between


@dataclass(frozen=True)
class Scored:
    """Sum of natural-log probabilities of a text's tokens, their number, and this text's share of the engine's time."""

    logprob: float
    tokens: int
    seconds: float


def summed_logprobs(engine: Engine, pairs: Sequence[tuple[Prompt, str]]) -> list[Scored]:
    """One score per (prompt, text), in order; behind a ledger, equal pairs are scored once, and read from there.

    Raises UserError where the engine cannot score, BudgetReached before a call that the budget does not cover.
    """
    kept = engine if isinstance(engine, LedgerEngine) else None
    keys = [_key(engine.name, *pair) if kept else str(place) for place, pair in enumerate(pairs)]
    todo = dict(zip(keys, pairs, strict=True))
    found: dict[str, Scored] = {}
    for key in list(todo) if kept is not None and kept.reads else ():
        known = kept.ledger.find(key)  # type: ignore[union-attr]
        if known is not None and known.logprob is not None:
            found[key] = Scored(known.logprob, known.tokens_in, known.seconds)
            del todo[key]
    waiting = list(todo)
    while waiting:
        batch = waiting[:_BATCH]
        if kept is not None:
            whole = [Prompt(p.messages, p.text + text, p.shared) for p, text in (todo[key] for key in batch)]
            batch = batch[: kept.ledger.check_budget(kept.engine, whole, Sampling(max_tokens=0))]
        began = time.perf_counter()
        scores = engine.score([todo[key][0] for key in batch], [todo[key][1] for key in batch], 0)
        share = (time.perf_counter() - began) / len(batch)
        for key, score in zip(batch, scores, strict=True):
            found[key] = Scored(float(score.token_logprobs.sum()), len(score.tokens), share)
            if kept is not None:
                _store(kept, key, todo[key], found[key])
        waiting = waiting[len(batch) :]
    return [found[key] for key in keys]


def _store(engine: LedgerEngine, key: str, pair: tuple[Prompt, str], scored: Scored) -> None:
    """A score is kept as a completion of no text; its tokens in are those that were scored."""
    prompt, text = pair
    kept = Completion("", tokens_in=scored.tokens, seconds=scored.seconds, logprob=scored.logprob)
    engine.ledger.store(key, engine.purpose, engine.engine, Prompt(prompt.messages, prompt.text + text), kept)


def _key(engine: str, prompt: Prompt, continuation: str) -> str:
    return hash_of(["score", engine, [dict(message) for message in prompt.messages], prompt.text, continuation])
