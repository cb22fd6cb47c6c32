"""Log-probabilities of given texts after given prompts: one batch of the engine, each pair scored once per run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from supertiny.core.files import hash_of
from supertiny.core.ledger import LedgerEngine
from supertiny.core.payments import PaidCall, Payments
from supertiny.core.protocols import Engine
from supertiny.core.records import Completion, Prompt, Sampling, TokenScores

_BATCH = 1024  # pairs handed to an engine at once, so that the budget is looked at between
Pair = tuple[Prompt, str]


@dataclass(frozen=True)
class Scored:
    """Sum of natural-log probabilities of a text's tokens, their number, and what that took."""

    logprob: float
    tokens: int
    tokens_in: int
    """Tokens that were read: the prompt's too."""
    tokens_out: int
    """Tokens that a server wrote besides."""
    seconds: float
    """This text's share of the engine's time."""


def summed_logprobs(engine: Engine, pairs: Sequence[Pair]) -> list[Scored]:
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
            found[key] = _scored(known)
            del todo[key]
    if todo and kept is not None and hasattr(kept.engine, "score_paid"):
        found |= _paid(kept, todo)
        todo = {}
    waiting = list(todo)
    while waiting:
        batch = waiting[:_BATCH]
        if kept is not None:
            whole = [_whole(todo[key]) for key in batch]
            batch = batch[: kept.ledger.check_budget(kept.engine, whole, Sampling(max_tokens=0))]
        began = time.perf_counter()
        scores = engine.score([todo[key][0] for key in batch], [todo[key][1] for key in batch], 0)
        share = (time.perf_counter() - began) / len(batch)
        for key, score in zip(batch, scores, strict=True):
            completion = _completion(score, share)
            found[key] = _scored(completion)
            if kept is not None:
                kept.ledger.store(key, kept.purpose, kept.engine, _whole(todo[key]), completion)
        waiting = waiting[len(batch) :]
    return [found[key] for key in keys]


def _paid(kept: LedgerEngine, todo: Mapping[str, Pair]) -> dict[str, Scored]:
    """Scores of a hosted engine: each try is told before it is sent, each score kept as soon as it is there."""
    hosted: Any = kept.engine
    hosted = getattr(hosted, "at_once", hosted)  # providers' batches have no scores
    calls = [PaidCall(key, _whole(pair), None) for key, pair in todo.items()]
    payments = Payments(kept.ledger, hosted, kept.purpose, calls, Sampling(max_tokens=1))
    found: dict[str, Scored] = {}

    def store(index: int, score: TokenScores) -> None:
        found[calls[index].key] = _scored(payments.store(index, _completion(score, 0.0)))

    try:
        prompts, texts = [prompt for prompt, _ in todo.values()], [text for _, text in todo.values()]
        hosted.score_paid(prompts, texts, 0, store, payments)
    finally:
        payments.close()
    return found


def _completion(score: TokenScores, seconds: float) -> Completion:
    """A score as the ledger keeps it: a completion of no text."""
    count, logprob = len(score.tokens), float(score.token_logprobs.sum())
    tokens_in = score.tokens_in or count
    return Completion("", tokens_in, score.tokens_out, seconds=seconds, logprob=logprob, scored=count)


def _scored(kept: Completion) -> Scored:
    tokens = kept.tokens_in if kept.scored is None else kept.scored  # ledgers of before have these alone
    return Scored(kept.logprob or 0.0, tokens, kept.tokens_in, kept.tokens_out, kept.seconds)


def _whole(pair: Pair) -> Prompt:
    """What the engine reads for a pair."""
    prompt, text = pair
    return Prompt(prompt.messages, prompt.text + text, prompt.shared)


def _key(engine: str, prompt: Prompt, continuation: str) -> str:
    return hash_of(["score", engine, [dict(message) for message in prompt.messages], prompt.text, continuation])
