"""Every paid or slow model call goes through one SQLite file, once: cache, resume, bill and test replay."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.files import hash_of
from supertiny.core.payments import SCHEMA, PaidCall, Payments, Spent, worst_tokens_in
from supertiny.core.protocols import Done, Engine
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores

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
_PIPELINES = "CREATE TABLE IF NOT EXISTS pipelines (steps TEXT PRIMARY KEY)"  # whose calls are in here, by their hash
Change = tuple[str, Sequence[Any]]
"""A query that changes the file, and its values."""
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
    """In `Ledger.lost`: tries that may have been billed."""
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
            for table in (_SCHEMA, _PIPELINES, *SCHEMA):
                self._connection.execute(table)
            self._recorded, self._pending = self._sums()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: not a ledger: {error}", "move it away to start afresh") from None

    def wrap(self, engine: Engine, purpose: str) -> LedgerEngine:
        """The same engine; what it once wrote is read from here."""
        return LedgerEngine(self, engine, purpose)

    def find(self, key: str) -> Completion | None:
        rows = self.ask("SELECT completion FROM calls WHERE key = ?", (key,))
        return Completion(**json.loads(rows[0][0])) if rows else None

    def store(
        self,
        key: str,
        purpose: str,
        engine: Engine,
        prompt: Prompt,
        completion: Completion,
        more: Sequence[Change] = (),
        price: Price | None = None,
    ) -> None:
        """Records a call that is not there yet, and `more` in the same breath; `price` in place of the engine's."""
        dollars = (price or engine.price).dollars(
            completion.tokens_in, completion.tokens_out, completion.tokens_cached, completion.seconds
        )
        row = (
            key,
            purpose,
            engine.name,
            json.dumps(vars(prompt), ensure_ascii=False),
            json.dumps(vars(completion), ensure_ascii=False),
            dollars,
            completion.seconds,
            completion.tokens_in,
            completion.tokens_out,
            completion.tokens_cached,
        )
        columns = "key, purpose, engine, prompt, completion, dollars, seconds, tokens_in, tokens_out, tokens_cached"
        insert = f"INSERT OR IGNORE INTO calls ({columns}) VALUES ({','.join('?' * len(row))})"
        with self._lock:
            if self.change((insert, row), *more):
                self._recorded.add(dollars, completion.tokens_in + completion.tokens_out, completion.seconds)

    def bills(self, purpose: str = "") -> list[Bill]:
        """Totals by purpose, in the order of their first call; of all purposes that begin with `purpose`."""
        query = (
            "SELECT purpose, COUNT(*), SUM(dollars), SUM(seconds), SUM(tokens_in), SUM(tokens_out), SUM(tokens_cached)"
            " FROM calls WHERE substr(purpose, 1, length(?)) = ? GROUP BY purpose ORDER BY MIN(rowid)"
        )
        return [Bill(*row) for row in self.ask(query, (purpose, purpose))]

    def lost(self) -> list[Bill]:
        """By purpose, what may have been billed without an answer that is kept, at its worst; tokens in and out as in.

        These are tries that were cut off or timed out, and calls that were under way when a run was killed.
        """
        query = (
            "SELECT purpose, SUM(tries), SUM(dollars), SUM(seconds), SUM(tokens), 0, 0 FROM ("
            "SELECT purpose, tries, dollars, seconds, tokens FROM lost UNION ALL "
            "SELECT purpose, tries, dollars * tries, 0.0, tokens * tries FROM pending UNION ALL "
            "SELECT purpose, 0, 0.0, seconds, 0 FROM running"
            ") GROUP BY purpose ORDER BY purpose"
        )
        return [Bill(*row) for row in self.ask(query)]

    def note_steps(self, steps: Any) -> None:
        """Notes that a pipeline of these steps, as plain values, makes calls."""
        self.change(("INSERT OR IGNORE INTO pipelines (steps) VALUES (?)", (hash_of(steps),)))

    def holds_only(self, steps: Any) -> bool:
        """Whether these steps and no others have made calls: then a request takes what it took so far."""
        return self.ask("SELECT steps FROM pipelines") == [(hash_of(steps),)]

    def spent(self) -> Spent:
        """What is recorded, and at its worst what is under way or lost; of engine time what is recorded."""
        with self._lock:
            known, open_ = self._recorded, self._pending
            return Spent(known.dollars + open_.dollars, known.tokens + open_.tokens, known.seconds)

    def add_pending(self, dollars: float, tokens: float) -> None:
        """Counts what a call under way may cost; negative where it has ended."""
        with self._lock:
            self._pending.add(dollars, tokens)

    def lose(self, purpose: str, engine: str, tries: int, dollars: float, tokens: int, seconds: float = 0.0) -> Change:
        """Counts `tries` that may have been billed at `dollars` and `tokens` each; gives the change that records it."""
        row = (purpose, engine, tries, dollars * tries, tokens * tries, seconds)
        with self._lock:
            self._recorded.add(dollars * tries, tokens * tries, seconds)
        return "INSERT INTO lost (purpose, engine, tries, dollars, tokens, seconds) VALUES (?, ?, ?, ?, ?, ?)", row

    def check_budget(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> int:
        """How many of the prompts may be sent now, at their worst. Raises BudgetReached where none may.

        The first prompt of a batch is taken to last twice as long as the longest share so far (it waits for what the
        batch shares), the others twice as long as the mean. The first of all goes alone, to learn that.
        """
        so_far = self.spent()
        dollars, tokens, seconds = so_far.dollars, so_far.tokens, so_far.seconds
        count, mean, longest = self.ask("SELECT COUNT(*), AVG(seconds), MAX(seconds) FROM calls")[0]
        timed = self.budget.minutes is not None or (self.budget.dollars is not None and engine.price.dollars_per_hour)
        if timed and not count:
            prompts = prompts[:1]
        allowed = 0
        for prompt in prompts:
            worst_seconds = 2 * ((mean if allowed else longest) or 0.0)
            worst_in = worst_tokens_in(prompt)
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

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query. Raises UserError where the file is damaged."""
        with self._lock, self._told():
            return self._connection.execute(query, values).fetchall()

    def change(self, *changes: Change) -> bool:
        """Makes all changes or none; gives whether the first changed anything. Raises UserError, as on a full disk."""
        with self._lock, self._told(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            counts = [self._connection.execute(query, values).rowcount for query, values in changes]
        return bool(counts and counts[0] > 0)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            full = isinstance(error, sqlite3.OperationalError)
            hint = "free some disk space or check rights" if full else "it is damaged: move it away to start afresh"
            raise UserError(f"cannot {'write' if full else 'read'} {self.path}: {error}", hint) from error

    def _sums(self) -> tuple[Spent, Spent]:
        """What is recorded, and what may be under way or was when a run was killed."""

        def summed(query: str) -> Spent:
            dollars, tokens, seconds = self._connection.execute(query).fetchone()
            return Spent(dollars or 0.0, tokens or 0, seconds or 0.0)

        recorded = summed("SELECT SUM(dollars), SUM(tokens_in + tokens_out), SUM(seconds) FROM calls")
        lost = summed("SELECT SUM(dollars), SUM(tokens), SUM(seconds) FROM lost")
        recorded.add(lost.dollars, lost.tokens, lost.seconds)
        recorded.add(0.0, 0, summed("SELECT 0.0, 0, SUM(seconds) FROM running").seconds)
        return recorded, summed("SELECT SUM(dollars * tries), SUM(tokens * tries), 0.0 FROM pending")


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
        if todo and hasattr(self.engine, "complete_paid"):
            self._pay(todo, prompts, sampling, grammars, tell)
            todo = []
        while todo:
            head = [prompts[index] for _, index in todo[:_CHUNK]]
            chunk = todo[: self.ledger.check_budget(self.engine, head, sampling)]
            self._compute(chunk, prompts, sampling, grammars, tell)
            todo = todo[len(chunk) :]
        return [found[key] for key in keys]

    def _pay(
        self,
        todo: Sequence[tuple[str, int]],
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammars: Sequence[Grammar | None],
        tell: Callable[[str, Completion], None],
    ) -> None:
        """All at once: a hosted engine asks before each try whether the budget has room for it."""
        calls = [PaidCall(key, prompts[index], grammars[index]) for key, index in todo]
        payments = Payments(self.ledger, self.engine, self.purpose, calls, sampling)

        def store(index: int, completion: Completion) -> None:
            tell(calls[index].key, payments.store(index, _written(completion)))

        hosted: Any = self.engine
        try:
            hosted.complete_paid([c.prompt for c in calls], sampling, [c.grammar for c in calls], store, payments)
        finally:
            payments.close()

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
            shared = replace(_written(completion), seconds=now - last)
            last = now
            # A failure that was paid (a filtered answer) is kept like any other call: it must stand in the bill.
            if completion.finish != "error" or completion.tokens_in:
                self.ledger.store(key, self.purpose, self.engine, prompts[place], shared)
            tell(key, shared)

        self.engine.complete([prompts[i] for _, i in chunk], sampling, [grammars[i] for _, i in chunk], store)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        return self.engine.score(prompts, continuations, top)

    def anew(self, purpose: str) -> LedgerEngine:
        """The same engine and bill, computing every call at once: for measuring how long calls take."""
        return LedgerEngine(self.ledger, getattr(self.engine, "at_once", self.engine), purpose, reads=False)

    def under(self, purpose: str) -> LedgerEngine:
        """The same engine; what it spends is billed under another purpose."""
        return LedgerEngine(self.ledger, self.engine, purpose, self.reads)

    def close(self) -> None:
        self.engine.close()

    def _key(self, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
        return call_key(self.engine.name, prompt, sampling, grammar)


def _written(completion: Completion) -> Completion:
    """A lone surrogate, half of a character that a model broke off, has no place in any file."""
    return replace(completion, text=completion.text.encode(errors="replace").decode())


def call_key(engine: str, prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """Under which a call is kept. `shared` is a hint on how to compute, not what: it stays out of the key."""
    parts: list[Any] = [engine, [dict(m) for m in prompt.messages], prompt.text, vars(sampling)]
    return hash_of([*parts, vars(grammar) if grammar else None])
