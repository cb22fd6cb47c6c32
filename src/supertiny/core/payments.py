"""What a provider may have billed before its answer is in the ledger: calls under way, tries cut off, kills.

The intent of a call is written down before it is sent, with a key that goes along as `Idempotency-Key`. Whoever is
killed finds the key again and sends it again: a provider that honours it answers anew without billing. One that ignores
it may bill a call again that was under way at the kill, `concurrency` of them at most, and a try whose answer was cut
off, late or broken. Against the budget every try counts at its worst until its answer has come. Time that belongs to no
answer yet is written down as it passes, where minutes are limited.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from supertiny.core.errors import BudgetReached
from supertiny.core.protocols import Engine
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling

if TYPE_CHECKING:
    from supertiny.core.ledger import Change, Ledger

SCHEMA = (
    """
    CREATE TABLE IF NOT EXISTS pending (
        key TEXT PRIMARY KEY,        -- as in calls
        sent TEXT NOT NULL,          -- what goes along as Idempotency-Key
        purpose TEXT NOT NULL,
        engine TEXT NOT NULL,
        dollars REAL NOT NULL,       -- of one try, at its worst; the mean where tries had several prices
        tokens INTEGER NOT NULL,     -- of one try, at its worst
        tries INTEGER NOT NULL,      -- that may have been billed, with the one under way
        batch TEXT NOT NULL          -- the provider's batch that the call went into; empty where it went alone
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS lost (
        purpose TEXT NOT NULL,
        engine TEXT NOT NULL,
        tries INTEGER NOT NULL,      -- that may have been billed and gave no answer that is kept
        dollars REAL NOT NULL,
        tokens INTEGER NOT NULL,
        seconds REAL NOT NULL,       -- of the engine's time that belong to no call
        at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS running (
        name TEXT PRIMARY KEY,       -- of a batch of calls that is under way, or was when a run was killed
        purpose TEXT NOT NULL,
        seconds REAL NOT NULL        -- since its last answer
    )
    """,
)
UNORDERED = "?"
"""In place of a batch's name: the call is allowed, and its batch not ordered yet; so nothing can be billed."""
_TURN_TOKENS, _TEMPLATE_TOKENS = 16, 64
_KEPT_SHARE, _KEPT_SECONDS = 0.01, 0.2  # of a budget of minutes: what ending takes


@dataclass
class Spent:
    """Sums of what is recorded, and at its worst of what is not known yet."""

    dollars: float = 0.0
    tokens: float = 0
    seconds: float = 0.0

    def add(self, dollars: float, tokens: float, seconds: float = 0.0) -> None:
        self.dollars += dollars
        self.tokens += tokens
        self.seconds += seconds


@dataclass
class PaidCall:
    """One call of a batch, and what is known of its tries."""

    key: str
    prompt: Prompt
    grammar: Grammar | None
    sent: str = ""
    batch: str = ""
    dollars: float = 0.0
    """Of one more try, at its worst."""
    tokens: float = 0
    held: list[tuple[float, float]] = field(default_factory=list)
    """Dollars and tokens of each try that may be billed, the one under way with them, at the price of its day."""

    @property
    def worst(self) -> tuple[float, float]:
        """Dollars and tokens of all these tries."""
        return sum(dollars for dollars, _ in self.held), sum(tokens for _, tokens in self.held)


class Payments:
    """Keeps the account of one batch of calls to a hosted engine. Indexes are places in `calls`.

    Such an engine has a method `complete_paid(prompts, sampling, grammar, done, payments)`: as `complete`, but every
    try is told here before it is sent and after it ended without an answer.
    """

    def __init__(
        self, ledger: Ledger, engine: Engine, purpose: str, calls: Sequence[PaidCall], sampling: Sampling
    ) -> None:
        self._ledger = ledger
        self._engine = engine
        self._purpose = purpose
        self._sampling = sampling
        self._calls = list(calls)
        self._open: set[int] = set()  # begun, and neither answered nor known to be refused for good
        self._blocked: set[int] = set()  # wait for room in the budget
        self._longest_seconds = 0.0
        self._name = uuid.uuid4().hex
        self._last = time.perf_counter()
        columns = "key, sent, tries, batch, dollars, tokens"
        noted = {key: row for key, *row in ledger.ask(f"SELECT {columns} FROM pending")}
        for call in self._calls:
            self._know(call, noted.get(call.key))

    def begin(self, index: int, batch: str = "") -> str | None:
        """Notes a try before it is sent; gives the key to send along, or None where another call must end first.

        One that is to go into a batch says UNORDERED until `put_into` names it.

        Raises BudgetReached where the try could cross the budget and no other call is under way whose answer could show
        that less was spent.
        """
        call = self._calls[index]
        over = self._over(call)
        # Who waits already goes first: a call with lost tries holds a part of the budget until it is answered.
        waits = over or (index not in self._blocked and self._blocked)
        if waits and self._open - self._blocked - {index}:
            self._blocked.add(index)
            return None
        self._blocked.discard(index)
        if over or self._is_late():
            limit = over or f"{self._ledger.budget.minutes:g} minutes"
            raise BudgetReached(
                f"the budget of {limit} is reached: the next call could cross it",
                "raise prototype.budget and run the same command to go on; nothing paid is lost",
            )
        call.sent = call.sent or uuid.uuid4().hex
        call.held.append((call.dollars, call.tokens))
        call.batch = batch
        self._open.add(index)
        self._ledger.add_pending(call.dollars, call.tokens)
        self._ledger.change(self._noted(call), *self._time())
        return call.sent

    def end(self, index: int, billed: bool, new_key: bool = False) -> None:
        """A try gave no answer; `billed` says whether the provider may bill it.

        What was certainly not billed is forgotten, its key too: some providers answer a key again with the refusal.
        With `new_key` the next try has another one in any case.
        """
        call = self._calls[index]
        if not billed:
            dollars, tokens = call.held.pop()
            self._ledger.add_pending(-dollars, -tokens)
        if new_key or not call.held:
            call.sent = ""
        call.batch = ""
        if call.held:
            self._ledger.change(self._noted(call))
        else:
            self._ledger.change(("DELETE FROM pending WHERE key = ?", (call.key,)))

    def settle(self) -> None:
        """No call is under way or waits: what was begun before is answered, or tried again by a new `begin`."""
        self._open.clear()
        self._blocked.clear()

    def store(self, index: int, completion: Completion) -> Completion:
        """Records an answer and what its lost tries may have cost; gives it with its share of the engine's time."""
        call = self._calls[index]
        now = time.perf_counter()
        self._longest_seconds = max(self._longest_seconds, completion.seconds)
        shared = replace(completion, seconds=now - self._last)
        self._last = now
        shared = self._billed(call, shared)
        rows: list[Change] = [
            ("DELETE FROM pending WHERE key = ?", (call.key,)),
            ("DELETE FROM running WHERE name = ?", (self._name,)),
        ]
        if lost := call.held[:-1]:
            # A lost try read the same prompt, and wrote no more than it was allowed to.
            known = self._engine.price.dollars(shared.tokens_in, self._sampling.max_tokens)
            share = known / call.dollars if call.dollars else 1.0
            dollars = share * sum(dollars for dollars, _ in lost) / len(lost)
            tokens = shared.tokens_in + self._sampling.max_tokens
            rows.append(self._ledger.lose(self._purpose, self._engine.name, len(lost), dollars, tokens))
        price = self._price_of(call)
        self._ledger.store(call.key, self._purpose, self._engine, call.prompt, shared, rows, price)
        held_dollars, held_tokens = call.worst
        self._ledger.add_pending(-held_dollars, -held_tokens)
        self._open.discard(index)
        call.held, call.batch = [], ""
        return shared

    def keep_time(self) -> None:
        """Writes down the time since the last answer, which a kill would make forgotten."""
        if changes := self._time():
            self._ledger.change(*changes)

    def close(self) -> None:
        """The engine has stopped: time since its last answer belongs to no call, and counts."""
        now = time.perf_counter()
        if self._ledger.budget.minutes is not None and now > self._last:
            row = self._ledger.lose(self._purpose, self._engine.name, 0, 0.0, 0, now - self._last)
            self._ledger.change(row, ("DELETE FROM running WHERE name = ?", (self._name,)))
        self._last = now

    def seconds_left(self) -> float:
        """Until the budget of minutes is used up; infinite where there is none."""
        minutes = self._ledger.budget.minutes
        if minutes is None:
            return float("inf")
        running = time.perf_counter() - self._last
        kept = max(minutes * 60 * _KEPT_SHARE, _KEPT_SECONDS)
        return minutes * 60 - kept - self._ledger.spent().seconds - running

    def batch_of(self, index: int) -> str:
        """The provider's batch that the call went into and was not read from yet; empty where there is none."""
        return self._calls[index].batch

    def key_of(self, index: int) -> str:
        """The key under which the call was sent last."""
        return self._calls[index].sent

    def put_into(self, batch: str, indexes: Sequence[int]) -> None:
        """Notes the batch of calls that `begin` has allowed."""
        for index in indexes:
            self._calls[index].batch = batch
        rows = [("UPDATE pending SET batch = ? WHERE key = ?", (batch, self._calls[i].key)) for i in indexes]
        self._ledger.change(*rows)

    def _know(self, call: PaidCall, noted: Sequence[Any] | None) -> None:
        """What a try costs at its worst, and what an earlier process noted of this call."""
        tokens_in = worst_tokens_in(call.prompt, call.grammar) + int(getattr(self._engine, "more_tokens", 0))
        call.tokens = tokens_in + self._sampling.max_tokens
        call.dollars = self._engine.price.dollars(tokens_in, self._sampling.max_tokens)
        if noted:
            call.sent, tries, call.batch, dollars, tokens = noted
            call.held = [(dollars, tokens)] * tries  # the price may be another one since then

    def _time(self) -> list[Change]:
        if self._ledger.budget.minutes is None:
            return []
        row = (self._name, self._purpose, time.perf_counter() - self._last)
        return [("INSERT OR REPLACE INTO running (name, purpose, seconds) VALUES (?, ?, ?)", row)]

    def _noted(self, call: PaidCall) -> Change:
        columns = "key, sent, purpose, engine, dollars, tokens, tries, batch"
        tries = len(call.held)
        dollars, tokens = (each / tries for each in call.worst)
        row = (call.key, call.sent, self._purpose, self._engine.name, dollars, tokens, tries, call.batch)
        return f"INSERT OR REPLACE INTO pending ({columns}) VALUES (?,?,?,?,?,?,?,?)", row

    def _over(self, call: PaidCall) -> str:
        """Limits that one more try of this call could cross, besides all that is pending."""
        budget, spent = self._ledger.budget, self._ledger.spent()
        dollars, tokens = spent.dollars + call.dollars, spent.tokens + call.tokens
        over = [f"{budget.dollars:g} dollars"] if budget.dollars is not None and dollars > budget.dollars else []
        over += [f"{budget.tokens:g} tokens"] if budget.tokens is not None and tokens > budget.tokens else []
        return " and ".join(over)

    def _is_late(self) -> bool:
        return self.seconds_left() <= self._longest_seconds

    def _price_of(self, call: PaidCall) -> Price:
        """What its answer costs: one from a batch has the batch's price, whichever way calls go now."""
        price: Price = getattr(self._engine, "batch_price", self._engine.price) if call.batch else self._engine.price
        return price

    def _billed(self, call: PaidCall, completion: Completion) -> Completion:
        """A server that does not say what it billed is taken at the worst, where tokens cost money or are counted."""
        if completion.tokens_in or completion.tokens_out:
            return completion
        if self._engine.price.dollars(1, 1) <= 0 and self._ledger.budget.tokens is None:
            return completion
        most = self._sampling.max_tokens
        return replace(completion, tokens_in=int(call.tokens) - most, tokens_out=most)


def worst_tokens_in(prompt: Prompt, grammar: Grammar | None = None) -> int:
    """Tokens that a prompt can have at most.

    A byte-level tokenizer never writes more tokens than there are bytes, besides those that the template puts around
    each turn and at the beginning; hosted models read the schema too.
    """
    said = [prompt.text, grammar.text if grammar else ""]
    for message in prompt.messages:
        said += [value if isinstance(value, str) else json.dumps(value) for value in message.values()]
    read = sum(len(text.encode(errors="replace")) for text in said)
    return read + _TURN_TOKENS * len(prompt.messages) + _TEMPLATE_TOKENS
