"""Every paid or slow model call goes through one SQLite file, once: cache, resume, bill and test replay."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.files import hash_of
from supertiny.core.protocols import Done, Engine
from supertiny.core.records import Completion, Grammar, Prompt, Sampling, TokenScores

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    key TEXT PRIMARY KEY,        -- hash of engine, prompt, sampling and grammar
    purpose TEXT NOT NULL,       -- which part of the run asked
    engine TEXT NOT NULL,
    prompt TEXT NOT NULL,        -- JSON
    completion TEXT NOT NULL,    -- JSON
    dollars REAL NOT NULL,
    seconds REAL NOT NULL,       -- share of the engine's wall time: shares add up to it
    tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    tokens_cached INTEGER NOT NULL,
    at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
)
"""
_CHUNK = 256  # prompts handed to an engine at once, so that the budget is looked at between


@dataclass(frozen=True)
class Budget:
    """What a run may spend on model calls; None is no limit. It is never crossed: a call that could, is not made."""

    dollars: Annotated[float, Field(ge=0)] | None = None
    """Dollars, by the engines' prices."""
    tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens in and out together."""
    minutes: Annotated[float, Field(ge=0)] | None = None
    """Minutes of engine time."""


@dataclass(frozen=True)
class Bill:
    """Totals of the calls of one purpose."""

    purpose: str
    calls: int
    dollars: float
    seconds: float
    tokens_in: int
    tokens_out: int
    tokens_cached: int


class Ledger:
    """One file of model calls. Safe against being killed: each call is committed when it ends."""

    def __init__(self, path: Path, budget: Budget | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.budget = budget or Budget()
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: not a ledger: {error}", "move it away to start afresh") from None

    def wrap(self, engine: Engine, purpose: str) -> LedgerEngine:
        """The same engine; what it once wrote is read from here."""
        return LedgerEngine(self, engine, purpose)

    def find(self, key: str) -> Completion | None:
        rows = self._ask("SELECT completion FROM calls WHERE key = ?", (key,))
        return Completion(**json.loads(rows[0][0])) if rows else None

    def store(self, key: str, purpose: str, engine: Engine, prompt: Prompt, completion: Completion) -> None:
        dollars = engine.price.dollars(
            completion.tokens_in, completion.tokens_out, completion.tokens_cached, completion.seconds
        )
        row = (
            key,
            purpose,
            engine.name,
            json.dumps(asdict(prompt), ensure_ascii=False),
            json.dumps(asdict(completion), ensure_ascii=False),
            dollars,
            completion.seconds,
            completion.tokens_in,
            completion.tokens_out,
            completion.tokens_cached,
        )
        columns = "key, purpose, engine, prompt, completion, dollars, seconds, tokens_in, tokens_out, tokens_cached"
        self._ask(f"INSERT OR IGNORE INTO calls ({columns}) VALUES ({','.join('?' * len(row))})", row)

    def bills(self) -> list[Bill]:
        """Totals by purpose, in the order of their first call."""
        query = (
            "SELECT purpose, COUNT(*), SUM(dollars), SUM(seconds), SUM(tokens_in), SUM(tokens_out), SUM(tokens_cached)"
            " FROM calls GROUP BY purpose ORDER BY MIN(rowid)"
        )
        return [Bill(*row) for row in self._ask(query)]

    def check_budget(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> int:
        """How many of the prompts may be sent now, at their worst. Raises BudgetReached where none may.

        The first prompt of a batch is taken to last twice as long as the longest share so far (it waits for what the
        batch shares), the others twice as long as the mean. The first of all goes alone, to learn that.
        """
        bills = self.bills()
        dollars = sum(bill.dollars for bill in bills)
        tokens = sum(bill.tokens_in + bill.tokens_out for bill in bills)
        seconds = sum(bill.seconds for bill in bills)
        mean = seconds / max(1, sum(bill.calls for bill in bills))
        longest = self._ask("SELECT MAX(seconds) FROM calls")[0][0]
        timed = self.budget.minutes is not None or (self.budget.dollars is not None and engine.price.dollars_per_hour)
        if timed and longest is None:
            prompts = prompts[:1]
        allowed = 0
        for prompt in prompts:
            # A byte-level tokenizer never writes more tokens than there are bytes, plus the template's own.
            worst_seconds = 2 * (mean if allowed else longest or 0.0)
            worst_in = len(json.dumps(asdict(prompt), ensure_ascii=False).encode()) + 32
            dollars += engine.price.dollars(worst_in, sampling.max_tokens, 0, worst_seconds)
            tokens += worst_in + sampling.max_tokens
            seconds += worst_seconds
            spent = {"dollars": dollars, "tokens": tokens, "minutes": seconds / 60}
            over = [f"{limit:g} {name}" for name, limit in asdict(self.budget).items() if _is_over(limit, spent[name])]
            if over and not allowed:
                raise BudgetReached(
                    f"the budget of {' and '.join(over)} is reached: the next call could cross it",
                    "raise prototype.budget and run the same command to go on; nothing paid is lost",
                )
            if over:
                break
            allowed += 1
        return allowed

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._connection.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            full = isinstance(error, sqlite3.OperationalError)
            hint = "free some disk space or check rights" if full else "it is damaged: move it away to start afresh"
            raise UserError(f"cannot {'write' if full else 'read'} {self.path}: {error}", hint) from error


def _is_over(limit: float | None, spent: float) -> bool:
    return limit is not None and spent > limit


class LedgerEngine:
    """An engine behind the ledger. Equal prompts of one batch are computed once."""

    def __init__(self, ledger: Ledger, engine: Engine, purpose: str, reads: bool = True) -> None:
        """Without `reads` every call is computed, and billed, even one that the ledger holds."""
        self.ledger = ledger
        self.reads = reads
        self.engine = engine
        self.purpose = purpose
        self.name = engine.name
        self.price = engine.price

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        grammars = list(grammar) if grammar is not None else [None] * len(prompts)
        nonce = "" if self.reads else uuid.uuid4().hex
        keys = [nonce + self._key(p, sampling, g) for p, g in zip(prompts, grammars, strict=True)]
        places: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            places.setdefault(key, []).append(index)
        found: dict[str, Completion] = {}

        def tell(key: str, completion: Completion) -> None:
            found[key] = completion
            for index in places[key] if done else ():
                done(index, completion)  # type: ignore[misc]

        todo = []
        for key, (first, *_) in places.items():
            known = self.ledger.find(key)
            if known is None:
                todo.append((key, first))
            else:
                tell(key, known)
        while todo:
            head = [prompts[index] for _, index in todo[:_CHUNK]]
            chunk = todo[: self.ledger.check_budget(self.engine, head, sampling)]
            self._compute(chunk, prompts, sampling, grammars, tell)
            todo = todo[len(chunk) :]
        return [found[key] for key in keys]

    def _compute(
        self,
        chunk: Sequence[tuple[str, int]],
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammars: Sequence[Grammar | None],
        tell: Callable[[str, Completion], None],
    ) -> None:
        last = time.perf_counter()

        def store(index: int, completion: Completion) -> None:
            # The time since the last completion is this one's share: shares add up to the engine's wall time.
            nonlocal last
            now = time.perf_counter()
            key, place = chunk[index]
            # A lone surrogate, half of a character that a model broke off, has no place in any file.
            text = completion.text.encode(errors="replace").decode()
            shared = replace(completion, text=text, seconds=now - last)
            last = now
            # A failure that was paid (a filtered answer) is kept like any other call: it must stand in the bill.
            if completion.finish != "error" or completion.tokens_in:
                self.ledger.store(key, self.purpose, self.engine, prompts[place], shared)
            tell(key, shared)

        self.engine.complete([prompts[i] for _, i in chunk], sampling, [grammars[i] for _, i in chunk], store)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        return self.engine.score(prompts, continuations, top)

    def anew(self, purpose: str) -> LedgerEngine:
        """The same engine and bill, computing every call: for measuring how long calls take."""
        return LedgerEngine(self.ledger, self.engine, purpose, reads=False)

    def close(self) -> None:
        self.engine.close()

    def _key(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
        return call_key(self.engine.name, prompt, sampling, grammar)


def call_key(engine: str, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """Under which a call is kept. `shared` is a hint on how to compute, not what: it stays out of the key."""
    parts: list[Any] = [engine, [dict(m) for m in prompt.messages], prompt.text, asdict(sampling)]
    return hash_of([*parts, asdict(grammar) if grammar else None])
